"""The time left of a training, over random durations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from loraqa.report.time_left import SCORING_ONCE_TRAINED, TimeLeft, Work
from loraqa.train.run import Record

QUESTIONS = 500


@dataclass(frozen=True)
class Training:
    """What one process has to do, and the records that it will make."""

    work: Work
    done: int
    records: list[Record]


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    """Draw a training from its start, or from a checkpoint, with scorings or without."""
    sizes = draw(st.lists(st.floats(50, 150), min_size=1, max_size=20))
    seconds, total = st.floats(0.01, 100), len(sizes)
    between = draw(st.sets(st.integers(1, total)))
    scorings = sorted({0, *between, total}) if draw(st.booleans()) else []
    done = draw(st.integers(0, total - 1))
    records: list[Record] = []
    for step in range(done, total + 1):
        if step > done:
            took = draw(seconds)
            figures = {"seconds": took, "tokens_per_second": sizes[step - 1] / took}
            records.append({"kind": "train", "step": step, **figures})
        # The process before may have scored the step that it ended with.
        if step in scorings and (step == 0 or step > done or draw(st.booleans())):
            figures = {"seconds": draw(seconds), "total": QUESTIONS}
            records.append({"kind": "evaluation", "step": step, **figures})
    work = Work(total, sum(sizes) / total, scorings, draw(st.integers(0, 200)))
    return Training(work, done, records)


def of_kind(kind: str, records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


@given(trainings())
def test_it_is_that_of_the_steps_and_scorings_to_come(training: Training) -> None:
    work, records = training.work, training.records
    with patch.object(time, "monotonic", lambda: 0.0):
        time_left = TimeLeft(work, training.done)
        assert time_left.now() is None
        for index, record in enumerate(records, 1):
            time_left.add(record)
            left = time_left.now()
            steps_left = len(of_kind("train", records[index:]))
            scorings_left = len(of_kind("evaluation", records[index:]))
            # The first step of a process is no measure.
            steps = of_kind("train", records[:index])[1:]
            if steps_left and not steps:
                assert left is None
                continue
            assert left is not None
            rest = left.seconds
            if scored := of_kind("evaluation", records[:index]):
                scoring = scored[-1]["seconds"]
                if scored[-1]["step"] == 0:
                    scoring *= SCORING_ONCE_TRAINED
                rest -= scoring * (scorings_left + work.answered_after / QUESTIONS)
            assert left.at_least == (not scored and bool(scorings_left or work.answered_after))
            paces = [1 / each["tokens_per_second"] for each in steps] or [0]
            tokens = steps_left * work.tokens_per_step
            assert tokens * min(paces) - 1e-6 <= rest <= tokens * max(paces) + 1e-6


@given(st.floats(1, 100), st.lists(st.floats(0, 300), min_size=1))
def test_it_runs_on_between_two_records(seconds: float, passed: list[float]) -> None:
    clock = 0.0
    with patch.object(time, "monotonic", lambda: clock):
        time_left = TimeLeft(Work(3, 100))
        for step in (1, 2):
            clock += seconds
            figures = {"seconds": seconds, "tokens_per_second": 100 / seconds}
            time_left.add({"kind": "train", "step": step, **figures})
        start = clock
        for later in sorted(passed):
            clock = start + later
            left = time_left.now()
            assert left is not None
            assert abs(left.seconds - max(seconds - later, 0)) < 1e-6

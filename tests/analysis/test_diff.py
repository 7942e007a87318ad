"""Two evaluations are compared question by question, whatever their order."""

import numpy as np
import pytest
from tests.analysis.examples import CONTEXT, asked, outcome, some_questions

from loraqa.analysis.diff import Difference, diff
from loraqa.analysis.outcome import Outcome
from loraqa.errors import InputError

CONTEXTS = [f"{CONTEXT} Number {number}." for number in range(30)]


def random_outcome(seed: int) -> Outcome:
    """Sixty questions on thirty contexts, each with one of three answers."""
    answers = np.random.default_rng(seed).choice(["Ruth Olen", "Olen", "cold"], size=60)
    questions = [
        asked("Who?", ["Ruth Olen"], str(answer), id=f"q{number}", number=number // 2)
        for number, answer in enumerate(answers)
    ]
    return outcome(questions, CONTEXTS, f"runs/{seed}")


def test_an_evaluation_does_not_differ_from_itself() -> None:
    found = diff(random_outcome(1), random_outcome(1))
    assert (found.questions, found.contexts, found.left_out) == (60, 30, 0)
    assert found.f1.change.mean == found.f1.change.low == found.f1.change.high == 0
    assert found.p_value == 1
    assert found.changed == []


def test_scores_and_counts_are_those_of_the_questions() -> None:
    first, second = random_outcome(1), random_outcome(2)
    found = diff(first, second)
    pairs = list(zip(first.questions, second.questions, strict=True))
    assert found.exact_match.first == pytest.approx(first.scores["exact_match"])
    assert found.exact_match.second == pytest.approx(second.scores["exact_match"])
    assert found.f1.change.mean == pytest.approx(second.scores["f1"] - first.scores["f1"])
    assert found.only_first == sum(a.exact_match and not b.exact_match for a, b in pairs)
    assert found.only_second == sum(b.exact_match and not a.exact_match for a, b in pairs)
    assert len(found.changed) == sum(a.given.text != b.given.text for a, b in pairs)
    assert sum(count for *_, count in found.kinds) == 60


def test_interval_is_that_of_drawing_contexts_with_both_answers() -> None:
    first, second = random_outcome(1), random_outcome(2)
    changes = np.array(
        [b.f1 - a.f1 for a, b in zip(first.questions, second.questions, strict=True)]
    )
    by_context = changes.reshape(30, 2)
    random = np.random.default_rng(5)
    means = [by_context[random.integers(30, size=30)].mean() for _ in range(4000)]
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    change = diff(first, second).f1.change
    assert change.low == pytest.approx(low, abs=1.5)
    assert change.high == pytest.approx(high, abs=1.5)


def test_other_way_round_the_signs_change() -> None:
    there, back = (
        diff(random_outcome(1), random_outcome(2)),
        diff(random_outcome(2), random_outcome(1)),
    )
    assert there.f1.change.mean == pytest.approx(-back.f1.change.mean)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.only_first, there.only_second) == (back.only_second, back.only_first)


def test_order_of_the_second_makes_no_difference() -> None:
    first, second = random_outcome(1), random_outcome(2)
    turned = outcome(
        [
            asked("Who?", ["Ruth Olen"], q.given.text, id=q.id, number=29 - q.context)
            for q in reversed(second.questions)
        ],
        CONTEXTS[::-1],
        second.model,
    )
    assert diff(first, turned) == diff(first, second)


def test_only_questions_of_both_count() -> None:
    first = outcome(some_questions())
    second = outcome(
        [
            *some_questions()[:2],
            asked("How many people live there?", ["Two"], "Two", id="c"),
            asked("Who died?", ["John Smith"], "John Smith", id="e"),
        ]
    )
    found = diff(first, second)
    assert (found.questions, found.left_out) == (2, 4)


def test_no_question_of_both() -> None:
    first, second = outcome(some_questions()[:2]), outcome(some_questions()[2:], model="runs/two")
    with pytest.raises(InputError, match=r"were evaluated on different questions"):
        diff(first, second)


def test_what_changed_is_named() -> None:
    first = outcome(some_questions(["Ruth Olen", "1250", "people", ""]))
    second = outcome(some_questions(["John Smith", "1203", "people", "1203"]))
    found: Difference = diff(first, second)
    worse, *_, better = found.changed
    assert {worse.id, better.id} <= {"a", "d", "b"}
    kinds = {each.id: (each.first_kind, each.second_kind) for each in found.changed}
    assert kinds == {
        "a": ("right", "another entity of the same kind"),
        "b": ("another entity of the same kind", "right"),
        "d": ("right", "answered wrongly"),
    }
    assert better.id == "b"
    assert better.f1_change == 1
    assert found.changed[0].f1_change == -1
    assert ("right", "answered wrongly", 1) in found.kinds


def test_slices_cover_the_questions() -> None:
    found = diff(random_outcome(1), random_outcome(2))
    who = next(each for each in found.slices if each.label == "who")
    assert who.questions == 60
    assert who.f1 == found.f1

"""The trials of a sweep: complete, reproducible, and the same however often it is interrupted."""

import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from loraqa.errors import InputError
from loraqa.sweep.settings import Interval, SweepSettings
from loraqa.sweep.study import Study, Trial
from loraqa.sweep.tried import Tried, best_of

RANGES: dict[str, Any] = {
    "optimisation.learning_rate": {"from": 1e-4, "to": 1e-2, "log": True},
    "lora.rank": {"from": 2, "to": 64, "log": True},
    "lora.target_modules": ["all-linear", ["attention", "mlp"]],
    "optimisation.clip_norm": [1.0, None],
}
LISTS: dict[str, Any] = {
    "lora.rank": [2, 4],
    "lora.target_modules": ["all-linear", ["attention"]],
    "optimisation.clip_norm": [1.0, None, 0.5],
}


def of(ranges: Mapping[str, Any], sampler: str, **options: Any) -> SweepSettings:
    return SweepSettings.model_validate({"ranges": ranges, "sampler": sampler, **options})


def score(values: Mapping[str, Any]) -> float:
    """F1 that a training might have with these values."""
    return 90 - 1000 * abs(values.get("optimisation.learning_rate", 0) - 1e-3) - values["lora.rank"]


def run(study: Study, most: int = 1000) -> None:
    """Finish up to so many trials."""
    for _ in range(most):
        trial = study.next()
        if trial is None:
            return
        study.finish(trial, score(trial.values), 0.0, 1.0)


def values_of(study: Study) -> list[Mapping[str, Any]]:
    return [trial.values for trial in study.trials()]


def test_a_grid_is_the_product_of_its_values(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", of(LISTS, "grid"), 0, 1)
    run(study)
    product = [
        dict(zip(LISTS, values, strict=True)) for values in itertools.product(*LISTS.values())
    ]
    assert values_of(study) == product
    assert all(trial.state == "done" for trial in study.trials())


# TPE and Gaussian process draw the first ten at random.
@pytest.mark.parametrize(("sampler", "trials"), [("random", 4), ("tpe", 12), ("gp", 11)])
def test_equal_seeds_give_equal_trials_within_the_ranges(
    tmp_path: Path, sampler: str, trials: int
) -> None:
    first, second, other = (
        Study(tmp_path / name, of(RANGES, sampler, trials=trials), seed, 1)
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    for study in (first, second):
        run(study)
    run(other, most=1)
    assert values_of(first) == values_of(second)
    assert values_of(first)[:1] != values_of(other)
    assert len(first.trials()) == trials
    for values in values_of(first):
        assert 1e-4 <= values["optimisation.learning_rate"] <= 1e-2
        assert type(values["lora.rank"]) is int
        assert 2 <= values["lora.rank"] <= 64
        for key in ("lora.target_modules", "optimisation.clip_norm"):
            assert values[key] in RANGES[key]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "grid"])
def test_a_study_that_is_opened_again_and_again_has_the_same_trials(
    tmp_path: Path, sampler: str
) -> None:
    what = of(LISTS if sampler == "grid" else RANGES, sampler, trials=12)
    whole = Study(tmp_path / "whole.db", what, 3, 1)
    run(whole)
    run(Study(tmp_path / "study.db", what, 3, 1), most=9)
    for _ in range(3):
        # The first process dies in the middle of the trial.
        interrupted = Study(tmp_path / "study.db", what, 3, 1).next()
        study = Study(tmp_path / "study.db", what, 3, 1)
        assert study.trials()[-1].state == "running"
        trial = study.next()
        assert interrupted is not None
        assert trial is not None
        assert (trial.number, trial.values) == (interrupted.number, interrupted.values)
        study.finish(trial, score(trial.values), 0.0, 1.0)
    assert study.next() is None
    assert study.trials() == whole.trials()


def test_more_trials_go_on_with_a_finished_study(tmp_path: Path) -> None:
    run(Study(tmp_path / "study.db", of(RANGES, "tpe", trials=4), 0, 1))
    study = Study(tmp_path / "study.db", of(RANGES, "tpe", trials=6), 0, 1)
    run(study)
    whole = Study(tmp_path / "whole.db", of(RANGES, "tpe", trials=6), 0, 1)
    run(whole)
    assert study.trials() == whole.trials()
    assert len(study.trials()) == 6


def test_values_that_are_drawn_again_get_the_earlier_outcome(tmp_path: Path) -> None:
    what = of({"lora.rank": [2, 4, 8]}, "random", trials=20)
    study = Study(tmp_path / "study.db", what, 0, 1)
    outcomes: dict[int, Callable[[Trial], None]] = {
        2: lambda trial: study.finish(trial, 50.0, 40.0, 1.0),
        4: lambda trial: study.halve(trial, 1.0),
        8: lambda trial: study.fail(trial, "The loss is nan."),
    }
    trained = []
    while (trial := study.next()) is not None:
        trained.append(trial.values["lora.rank"])
        trial.judge(3, 30.0)
        outcomes[trial.values["lora.rank"]](trial)
    assert sorted(trained) == [2, 4, 8]
    trials = study.trials()
    assert len(trials) == 20
    first: dict[int, Tried] = {}
    for each in trials:
        earlier = first.setdefault(each.values["lora.rank"], each)
        assert each.same_as == (None if each is earlier else earlier.number)
        told = (each.state, each.f1, each.exact_match, each.problem)
        assert told == (earlier.state, earlier.f1, earlier.exact_match, earlier.problem)
    best = best_of(trials)
    assert best is not None
    assert (best.f1, best.same_as) == (50.0, None)


@pytest.mark.parametrize("factor", [2, 3])
def test_of_those_that_reach_a_rung_one_in_so_many_goes_on(tmp_path: Path, factor: int) -> None:
    """As in Li et al. (2020), but for the first trials, the best of which goes on."""
    every, draw = 5, random.Random(factor)
    what = of({"lora.rank": {"from": 1, "to": 10**6}}, "random", trials=30, halving=factor)
    study = Study(tmp_path / "study.db", what, 0, every)
    reached: dict[int, list[float]] = {}
    ended = 0
    while (trial := study.next()) is not None:
        for step in range(every, 9 * every + 1, every):
            f1 = draw.random() * 100
            rung = step // every
            goes_on = True
            if rung in [factor**power for power in range(5)]:
                others = reached.setdefault(rung, [])
                others.append(f1)
                most = max(len(others) // factor, 1)
                goes_on = f1 >= sorted(others, reverse=True)[most - 1]
            trial.judge(step, f1)
            assert trial.is_behind != goes_on
            if not goes_on:
                study.halve(trial, 1.0)
                ended += 1
                break
        else:
            study.finish(trial, f1, 0.0, 1.0)
    assert 10 < ended < 30
    assert sum(each.state == "halved" for each in study.trials()) == ended


def test_a_trial_that_was_behind_when_the_process_died_is_ended_later(tmp_path: Path) -> None:
    def opened() -> Study:
        return Study(tmp_path / "study.db", of(RANGES, "random", trials=9, halving=2), 0, 1)

    for f1 in (50.0, 40.0):
        trial = opened().next()
        assert trial is not None
        trial.judge(1, f1)
        if f1 == 50:
            opened().finish(trial, f1, 0.0, 1.0)
    again = opened().next()
    assert again is not None
    assert again.number == 2
    again.judge(1, 40.0)
    assert again.is_behind


def test_without_halving_every_trial_goes_on(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", of(RANGES, "random", trials=9), 0, 1)
    for f1 in range(9, 0, -1):
        trial = study.next()
        assert trial is not None
        for step in (1, 2, 3, 4):
            trial.judge(step, float(f1))
        assert not trial.is_behind
        study.finish(trial, f1, 0.0, 1.0)


def test_a_study_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    study = Study(tmp_path / "study.db", of(RANGES, "random"), 0, 1)
    study.check_begun_with({"seed": 0, "lora.rank": [2, 4]})
    study.check_begun_with({"seed": 0, "lora.rank": [2, 4]})
    with pytest.raises(InputError, match=r"began with another lora.rank, \[2, 4\] and not \[2\];"):
        study.check_begun_with({"seed": 0, "lora.rank": [2]})


@pytest.mark.parametrize("name", ["study.db", "a#b%20c?mode=ro &.db"])
def test_a_study_is_kept_in_the_file_of_this_name(tmp_path: Path, name: str) -> None:
    run(Study(tmp_path / name, of(LISTS, "grid"), 0, 1), most=2)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(Study(tmp_path / name, of(LISTS, "grid"), 0, 1).trials()) == 2


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match="study.db cannot be read as the trials of a sweep"):
        Study(tmp_path / "study.db", of(LISTS, "grid"), 0, 1)


def test_an_interval_of_integers_includes_its_ends(tmp_path: Path) -> None:
    what = of({"lora.rank": {"from": 1, "to": 3}}, "random", trials=40)
    assert isinstance(what.ranges["lora.rank"], Interval)
    study = Study(tmp_path / "study.db", what, 0, 1)
    run(study)
    assert {values["lora.rank"] for values in values_of(study)} == {1, 2, 3}


def test_values_under_way_are_not_tried_twice(tmp_path: Path) -> None:
    """Several trials may be under way; one with the values of another waits, and is repeated."""
    what = of({"lora.rank": [2, 4]}, "random", trials=8)
    study = Study(tmp_path / "study.db", what, 0, 1)
    under_way: list[Trial] = []
    begun: list[Mapping[str, Any]] = []
    while True:
        while (trial := study.next()) is not None:
            under_way.append(trial)
            begun.append(trial.values)
        if not under_way:
            break
        study.finish(under_way.pop(), 1.0, 0.0, 1.0)
    assert sorted(values["lora.rank"] for values in begun) == [2, 4]
    tried = study.trials()
    assert [trial.state for trial in tried] == ["done"] * 8
    assert sum(trial.same_as is None for trial in tried) == 2
    # As with one after another.
    one = Study(tmp_path / "one.db", what, 0, 1)
    run(one)
    assert values_of(one) == values_of(study)

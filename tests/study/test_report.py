"""The study's experiments and tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study.experiments import (
    RATES,
    SEEDS,
    Experiment,
    confirmation,
    curve,
    final,
    grid,
    repetition,
    screening,
)
from study.report import Results
from tests.model.conftest import PASSAGES

from loraqa.errors import InputError
from loraqa.squad import QADataset


def test_experiments_that_do_the_same_have_one_result() -> None:
    screened = list(screening())
    recipes = {e.id for e in screened if e.is_recipe}
    assert len(recipes) == 1
    others = [e.id for e in screened if not e.is_recipe]
    assert len(set(others)) == len(others)


def f1(experiment: Experiment) -> float:
    best = {"0.001": 9.0, "0.0005": 8.0, "context twice": 9.0, "clozes": 8.0}
    return best.get(experiment.name, 0.0)


def test_the_best_two_of_each_group_are_confirmed() -> None:
    confirmed = list(confirmation(f1))
    rates = [(e.name, e.seed) for e in confirmed if e.group == "learning rate"]
    assert rates == [(name, seed) for name in ("0.001", "0.0005") for seed in SEEDS]
    assert {e.questions for e in confirmed} == {11_877}
    assert {e.questions for e in curve()} == {1_000, 2_000, 3_000, 11_877, 16_161}
    assert {(e.questions, e.dev) for e in final()} == {(16_161, None)}
    # The recipe is beside the best, for comparison.
    readings = {e.name for e in confirmed if e.group == "reading"}
    assert len(readings) == 3
    assert "plain" in readings
    # Repetitions differ from what was screened in the seed alone.
    repeated = list(repetition(f1))
    assert [(e.group, e.name, e.seed) for e in repeated] == [
        (e.group, e.name, e.seed) for e in confirmed
    ]
    assert {replace(e, seed=0).id for e in repeated} <= {e.id for e in screening()}


def test_the_grid_has_each_rate_of_each_value_once() -> None:
    tried = list(grid())
    assert len({(e.group, e.name, e.seed) for e in tried}) == len(tried) == 10 * 5 * 3
    rates = {e.all_settings["optimisation.learning_rate"] for e in tried if e.group == "variant"}
    assert rates == set(RATES)
    # Rank 16 on all layers is plain LoRA, trained once.
    assert len({e.id for e in tried}) == 8 * 5 * 3


def write_result(
    folder: Path, experiment: Experiment, dev: QADataset, f1: list[float], *, turned: bool = False
) -> None:
    """Write F1 of each question of the dev data, in the order of the data or the other one."""
    pairs = list(zip(dev.questions, f1, strict=True))
    questions = {q.id: [int(x == 1), x] for q, x in (reversed(pairs) if turned else pairs)}
    answers = {"f1": 100 * np.mean(f1), "by_question": questions}
    result = {"answers": {"greedy": answers, "span": answers}, "steps": 117}
    (folder / f"{experiment.id}.json").write_text(json.dumps(result))


def test_a_table_compares_with_the_recipe(tmp_path: Path) -> None:
    dev = QADataset.from_passages(PASSAGES[:2], "1.1")
    recipe = Experiment("rank", "16")
    other = Experiment("rank", "4", {"lora.rank": 4})
    write_result(tmp_path, recipe, dev, [1.0, 0.0, 0.5, 1.0])
    write_result(tmp_path, other, dev, [1.0, 1.0, 0.5, 1.0], turned=True)
    table = Results(tmp_path, dev).table(
        "rank", [other, recipe, Experiment("rank", "64", {"lora.rank": 64})]
    )
    cells = {row[0]: row for row in table.rows}
    assert str(cells["16"][5]).startswith("62.5 (")
    assert cells["16"][6] is None
    # One context gains 1/3, the other nothing.
    assert cells["4"][6] == "+25.0 (+0.0 to +33.3)"
    assert "64" not in cells


def test_only_equal_seeds_are_compared(tmp_path: Path) -> None:
    dev = QADataset.from_passages(PASSAGES[:2], "1.1")
    recipes = [Experiment("rank", "16", seed=seed) for seed in (0, 1)]
    other = Experiment("rank", "4", {"lora.rank": 4}, seed=1)
    write_result(tmp_path, recipes[0], dev, [1.0, 1.0, 1.0, 1.0])
    write_result(tmp_path, recipes[1], dev, [0.5, 0.5, 0.5, 0.5])
    write_result(tmp_path, other, dev, [1.0, 1.0, 1.0, 1.0])
    gains = {row[0]: row[6] for row in Results(tmp_path, dev).table("r", [*recipes, other]).rows}
    assert gains["4"] == "+50.0 (+50.0 to +50.0)"


def test_a_curve_is_not_compared_with_its_first_point(tmp_path: Path) -> None:
    dev = QADataset.from_passages(PASSAGES[:2], "1.1")
    points = [replace(e, seed=0) for e in curve() if e.seed == 0]
    for point in points:
        write_result(tmp_path, point, dev, [1.0, 0.0, 0.5, 1.0])
    rows = Results(tmp_path, dev).table("data", points).rows
    assert [row[6] for row in rows] == [None] * 5


def test_a_grid_has_a_row_for_what_was_tried_and_a_column_for_each_rate(tmp_path: Path) -> None:
    dev = QADataset.from_passages(PASSAGES[:2], "1.1")
    done = [e for e in grid() if (e.group, e.seed) == ("variant", 0)][:6]
    for experiment, score in zip(done, (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), strict=True):
        write_result(tmp_path, experiment, dev, [score] * 4)
    table = Results(tmp_path, dev).by_rate(list(grid()))
    assert [column.name for column in table.columns[1:]] == [
        "0.00025",
        "0.0005",
        "0.001",
        "0.002",
        "0.004",
    ]
    shown = {row[0]: row[1:] for row in table.rows}
    cells = [f"{score}.0 ({score}.0 to {score}.0)" for score in (50, 60, 70, 80, 90)]
    assert shown["variant LoRA"] == tuple(cells)
    assert shown["variant DoRA"] == ("100.0 (100.0 to 100.0)", None, None, None, None)


def test_other_dev_data_are_refused(tmp_path: Path) -> None:
    dev = QADataset.from_passages(PASSAGES[:2], "1.1")
    experiment = Experiment("rank", "16")
    write_result(tmp_path, experiment, dev, [1.0, 0.0, 0.5, 1.0])
    other = QADataset.from_passages(PASSAGES[2:], "1.1")
    with pytest.raises(InputError, match="that the dev data lack; give the file that was scored"):
        Results(tmp_path, other).table("rank", [experiment])

"""What a sweep tries is read from YAML, and every mistake in it is named."""

from pathlib import Path

import pytest
from tests.sweep.conftest import choose

from loraqa.errors import InputError
from loraqa.sweep.settings import Interval, SweepSettings, read_sweep

BASE = choose("gpt2", "train.json")


def read(folder: Path, text: str) -> SweepSettings:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return read_sweep(file, BASE)


def test_ranges_are_lists_and_intervals(tmp_path: Path) -> None:
    sweep = read(
        tmp_path,
        "sampler: random\n"
        "halving: 3\n"
        "ranges:\n"
        "  optimisation.learning_rate: {from: 1e-4, to: 4e-3, log: true}\n"
        "  lora.rank: [4, 8]\n"
        "  lora.target_modules: [all-linear, [attention, mlp]]\n"
        "  optimisation.clip_norm: [1.0, null]\n",
    )
    assert (sweep.sampler, sweep.halving, sweep.total) == ("random", 3, 20)
    assert sweep.ranges == {
        "optimisation.learning_rate": Interval.model_validate(
            {"from": 1e-4, "to": 4e-3, "log": True}
        ),
        "lora.rank": [4, 8],
        "lora.target_modules": ["all-linear", ["attention", "mlp"]],
        "optimisation.clip_norm": [1.0, None],
    }


@pytest.mark.parametrize(
    ("trials", "total"), [("", 6), ("trials: 4\n", 4), ("trials: 9\n", 6)], ids=str
)
def test_a_grid_has_as_many_trials_as_combinations_or_fewer(
    tmp_path: Path, trials: str, total: int
) -> None:
    ranges = "ranges: {lora.rank: [4, 8], lora.dropout: [0.0, 0.1, 0.2]}"
    assert read(tmp_path, f"sampler: grid\n{trials}{ranges}").total == total


RATE = "optimisation.learning_rate"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the key ranges is missing; write it as in `ranges: {lora.rank: [8, 16]}`."),
        ("ranges: {}", "ranges is {} but must have at least 1 item after validation, not 0."),
        (
            "lora: {rank: 8}\nranges: {lora.rank: [8]}",
            "there is no key lora; a sweep has sampler, trials, halving, ranges.",
        ),
        (
            "sampler: best\nranges: {lora.rank: [8]}",
            "sampler is 'best' but must be 'random', 'grid', 'tpe' or 'gp'.",
        ),
        (
            "halving: true\nranges: {lora.rank: [8]}",
            "halving is True but must be a valid integer.",
        ),
        (
            "trials: 0\nranges: {lora.rank: [8]}",
            "trials is 0 but must be greater than or equal to 1.",
        ),
        (
            "ranges: {lora.rank: 8}",
            "ranges.lora.rank is 8 but must be a list of values, or {from: …, to: …}.",
        ),
        (
            "ranges: {lora.rank: []}",
            "ranges.lora.rank is [] but must have at least 1 item after validation, not 0.",
        ),
        (
            f"ranges: {{{RATE}: {{from: 1e-4}}}}",
            f"the key ranges.{RATE}.to is missing; write it as in "
            f"`{RATE}: {{from: 1e-4, to: 1e-2, log: true}}`.",
        ),
        (
            f"ranges: {{{RATE}: {{from: 1e-4, to: 1e-2, step: 2}}}}",
            f"there is no key ranges.{RATE}.step; an interval has from, to and log.",
        ),
        (
            f"ranges: {{{RATE}: {{from: 1e-2, to: 1e-4}}}}",
            f"ranges.{RATE} goes from 0.01 to 0.0001, which must be larger.",
        ),
        (
            "ranges: {lora.dropout: {from: 0, to: 0.1, log: true}}",
            "ranges.lora.dropout has `log: true`, so `from` must be larger than 0.",
        ),
        (
            f"sampler: grid\nranges: {{{RATE}: {{from: 1e-4, to: 1e-2}}}}",
            f"ranges.{RATE} is an interval, but a grid needs a list, as in [1e-3, 2e-3].",
        ),
        ("ranges: {lora.rank: [8, 4, 8]}", "ranges.lora.rank names 8 twice; name each value once."),
        (
            "ranges: {lora.rnak: [8]}",
            "There is no setting lora.rnak (did you mean lora.rank?).",
        ),
        (
            "ranges: {lora.rank: [8, 0]}",
            "The setting lora.rank is 0 but must be greater than or equal to 1.",
        ),
        (
            "ranges: {lora.rank: {from: 1, to: 2.5}}",
            "The setting lora.rank is 2.5 but must be a valid integer.",
        ),
        (
            "ranges: {evaluation.every: [1, 2]}",
            "ranges.evaluation.every would change more than how a trial learns; what can be tried "
            "is lora, optimisation, prompt, data.negatives.",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'sweep.yaml'}: {problem}"

"""Effects of changes of an adapter, against adapters that are changed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.answer.conftest import DATA

from loraqa.adapter.info import INFO
from loraqa.analysis.learned import KIND, LAYER, RANK, SCALE, Effects
from loraqa.answer.effects import measure_effects
from loraqa.answer.evaluate import evaluate
from loraqa.answer.strategies import parse_strategy
from loraqa.errors import InputError
from loraqa.lora.settings import TENSORS
from loraqa.reader import Reader

GREEDY = parse_strategy("greedy")


@pytest.fixture
def reader(run: Path) -> Reader:
    return Reader.load(run, without="all")


@pytest.fixture
def measured(reader: Reader) -> Effects:
    return measure_effects(reader, DATA, GREEDY)


def test_every_part_is_taken_away_once(measured: Effects) -> None:
    assert [effect.value for effect in measured.of(LAYER)] == [0, 1]
    kinds = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert [effect.value for effect in measured.of(KIND)] == kinds
    assert [effect.value for effect in measured.of(RANK)] == [1, 2]
    assert [effect.value for effect in measured.of(SCALE)] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2]
    assert (measured.questions, measured.contexts, measured.strategy) == (6, 3, "greedy")


def test_scores_are_those_of_adapters_changed_by_hand(run: Path, measured: Effects) -> None:
    adapted, base = measured.scaled(1), measured.scaled(0)
    assert adapted.f1.mean == pytest.approx(evaluate(Reader.load(run), DATA, GREEDY).scores.f1)
    tensors = load_file(run / "adapter" / TENSORS)
    (run / "adapter" / INFO).write_text(without_hashes(run / "adapter" / INFO))
    for change, value, wanted in (
        (LAYER, 1, ".h.1."),
        (KIND, "mlp.c_fc", "mlp.c_fc"),
        (SCALE, 0, ""),
    ):
        changed = {
            key: torch.zeros_like(each) if wanted in key and "lora_B" in key else each
            for key, each in tensors.items()
        }
        save_file(changed, run / "adapter" / TENSORS)
        scores = evaluate(Reader.load(run), DATA, GREEDY).scores
        (effect,) = (each for each in measured.of(change) if each.value == value)
        assert effect.f1.mean == pytest.approx(scores.f1)
        assert effect.exact_match.mean == pytest.approx(scores.exact_match)
        assert effect.f1_lost.mean == pytest.approx(adapted.f1.mean - scores.f1)
        assert effect.f1_lost.low <= effect.f1_lost.mean <= effect.f1_lost.high
    assert base.f1_lost.mean == pytest.approx(adapted.f1.mean - base.f1.mean)


def without_hashes(path: Path) -> str:
    values = json.loads(path.read_text())
    del values["sha256"]
    return json.dumps(values)


def test_the_adapter_is_as_it_was(reader: Reader) -> None:
    before = {name: p.clone() for name, p in reader.runner.model.named_parameters()}
    measure_effects(reader, DATA, GREEDY)
    assert all(p.equal(before[name]) for name, p in reader.runner.model.named_parameters())


def test_progress_counts_the_answers_after_all_changes(reader: Reader) -> None:
    told: list[tuple[Any, ...]] = []
    measured = measure_effects(reader, DATA, GREEDY, progress=lambda *each: told.append(each))
    total = len(measured.effects) * 6
    assert told[0] == (0, total, "scaled by 0")
    assert told[-1] == (total, total, "mlp.c_proj off")
    assert {each[1] for each in told} == {total}
    assert [each[0] for each in told] == sorted(each[0] for each in told)


def test_a_model_without_an_adapter_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="has no adapter"):
        measure_effects(Reader.load(tiny_folder, without="all"), DATA, GREEDY)

"""BitFit and full fine-tuning: their gradients, what they train and save, and the comparison."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from study.methods import METHODS, NoBiasesError, save_trained, train_all, train_biases
from tests.conftest import assert_near, tiny_config, tiny_model, town_passages
from tests.model.conftest import padded_examples
from tests.train.conftest import PASSAGES, plan, settings
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from loraqa.errors import InputError
from loraqa.lora.adapt import parameter_counts
from loraqa.lora.flat import FlatAdapter
from loraqa.model.runner import TreeRunner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.speed.trial import fastest
from loraqa.squad import write_official
from loraqa.train.loop import train
from loraqa.train.run import RunDirectory
from study import baselines

TRAINED = [("bitfit", "gpt2"), ("full", "gpt2"), ("bitfit", "qwen2"), ("full", "llama")]


@pytest.fixture(scope="module")
def trees(tiny_tokenizer: Any) -> list[Tree]:
    encoder = PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 250, 20)
    return encoder.encode_training(PASSAGES).trees


def free(method: str, model: Any) -> None:
    """Freeze what a method does not train."""
    choose = METHODS[method].choose_weights
    assert choose is not None
    choose(model)


def is_trained(method: str, name: str) -> bool:
    return method == "full" or name.endswith(".bias")


def plain_gradients(kind: str, dtype: str, trees: list[Tree]) -> dict[str, Tensor]:
    """Gradients of all weights as a plain script has them: one row a question, padded, labels."""
    model = tiny_model(kind, dtype)
    input_ids, mask, labels = padded_examples(trees)
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-4)])
@pytest.mark.parametrize(("method", "kind"), TRAINED)
def test_gradients_are_those_of_plain_transformers(
    method: str, kind: str, dtype: str, tolerance: float, trees: list[Tree]
) -> None:
    model = tiny_model(kind, dtype)
    free(method, model)
    runner, _ = fastest(TreeRunner(model), ["training", "answering"])
    flat = FlatAdapter(model)
    half = len(trees) // 2
    runner.gradients(flat)([trees[:half], trees[half:]])()
    expected = plain_gradients(kind, dtype, trees)
    wanted = {name for name in expected if is_trained(method, name)}
    found = flat.split(flat.gradient)
    assert found.keys() == wanted
    assert len(wanted) > 5
    for name in wanted:
        # Norms and rotations of Llama are computed in fp32 even by an fp64 model.
        assert_near(found[name], expected[name], tolerance)


@pytest.mark.parametrize(("method", "kind"), TRAINED)
def test_frozen_weights_stay_to_the_bit_and_all_others_move(
    method: str, kind: str, trees: list[Tree], tmp_path: Path
) -> None:
    chosen = settings("optimisation.max_steps=2", "optimisation.weight_decay=0")
    model = tiny_model(kind)
    free(method, model)
    runner, _ = fastest(TreeRunner(model), ["training", "answering"])
    run = RunDirectory(tmp_path / "run")
    run.start(chosen, {}, {})
    train(runner, plan(trees, chosen), chosen, run, save_weights=save_trained)
    before = tiny_model(kind).state_dict()
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert after[name].equal(weight) != is_trained(method, name), name
    (saved,) = run.checkpoints.glob("*/adapter/model.safetensors")
    tensors = load_file(saved)
    assert tensors.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, weight in tensors.items():
        assert weight.equal(after[name])
    numbers = 4 * sum(weight.numel() for weight in tensors.values())
    assert numbers < saved.stat().st_size < numbers + 10_000


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tied_weight_counts_once_and_stays_tied(kind: str) -> None:
    config = tiny_config(kind)
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config)
    train_all(model)
    counts = parameter_counts(model)
    assert counts.trainable == counts.total == model.num_parameters()
    untied = tiny_config(kind)
    untied.tie_word_embeddings = False
    other = AutoModelForCausalLM.from_config(untied)
    train_all(other)
    assert parameter_counts(other).total - counts.total == 300 * 32
    for each, tied in ((model, True), (other, False)):
        flat = FlatAdapter(each)
        assert flat.vector.numel() == parameter_counts(each).total
        embedding, head = each.get_input_embeddings(), each.get_output_embeddings()
        assert (embedding.weight is head.weight) == tied
        with torch.no_grad():
            flat.vector.fill_(0.25)
        assert bool((head.weight == 0.25).all())


def test_bitfit_trains_the_biases_of_layers_and_norms() -> None:
    model = tiny_model("gpt2")
    train_biases(model)
    # Of two blocks: c_attn, c_proj, c_fc, the second c_proj and two norms; and the last norm.
    assert parameter_counts(model).trainable == 2 * (96 + 32 + 128 + 32 + 32 + 32) + 32


def test_a_model_without_biases_and_a_rounded_one_are_refused() -> None:
    with pytest.raises(NoBiasesError, match="a LlamaForCausalLM of this configuration has none"):
        train_biases(tiny_model("llama"))
    for choose in (train_all, train_biases):
        with pytest.raises(InputError, match="need model.dtype=float32"):
            choose(tiny_model("gpt2", "bfloat16"))


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options that name six questions to train on, and eight to score."""
    passages = town_passages(7)
    for name, part in {"train": passages[:3], "dev": passages[3:]}.items():
        write_official(tmp_path / f"{name}.json", part, "1.1")
    return ["--train", str(tmp_path / "train.json"), "--dev", str(tmp_path / "dev.json")]


def compare(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: object) -> tuple[str, str]:
    """Run the command; return its table and its errors."""
    monkeypatch.setattr(sys, "argv", ["baselines", *map(str, arguments)])
    capsys.readouterr()
    baselines.main()
    captured = capsys.readouterr()
    return captured.out, captured.err


def cells(table: str) -> dict[str, list[str]]:
    lines = [line.strip("|").split("|") for line in table.strip().splitlines()]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in lines}


def test_the_comparison_counts_measures_and_goes_on(
    data: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    options = ["--model", tiny_folder, *data, "--out", out, "--seeds", 0, 1]
    options += ["--lora-rates", "1e-3", "--bitfit-rates", "1e-3", "--full-rates", "1e-4", "1e-3"]
    options += ["--set", "optimisation.max_steps=2", "lora.rank=4"]
    table, _ = compare(monkeypatch, capsys, *options)
    rows = cells(table)
    assert rows[""] == ["LoRA", "BitFit", "full fine-tuning"]
    results = {file.name.rpartition("-")[0]: file for file in out.glob("*.json")}
    assert len(results) == 2 + 2 + 3
    assert {path.name for path in out.iterdir()} == {file.name for file in results.values()}
    model = tiny_model("gpt2")
    total = sum(weight.numel() for weight in model.parameters())
    lora = 4 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    biases = sum(w.numel() for name, w in model.named_parameters() if name.endswith(".bias"))
    for method, trained in {"lora": lora, "bitfit": biases, "full": total}.items():
        result = json.loads(next(f for name, f in results.items() if method in name).read_text())
        everything = total + lora if method == "lora" else total
        assert result["parameters"] == {"trained": trained, "total": everything}
        memory = result["memory"]
        assert memory["weights"] == 4 * everything
        assert memory["gradients"] == 4 * trained
        # Two means of each weight, and the number of steps.
        assert memory["optimizer"] == 8 * trained + 4
        assert 4 * trained < result["disk"]["weights"] < 4 * trained + 20_000
        assert result["disk"]["checkpoint"] > 12 * trained
        assert len(result["loss"]) == result["steps"] == 2
        assert len(result["answers"]) == 8
    assert rows["trained parameters"] == [f"{n:,}" for n in (lora, biases, total)]
    assert [len(cell.split(", ")) for cell in rows["F1 of each seed"]] == [2, 2, 2]
    assert rows["F1 minus that of LoRA"][0] == "–"

    # What is done is not done again; another seed is.
    times = {file: file.stat().st_mtime_ns for file in results.values()}
    assert compare(monkeypatch, capsys, *options)[0] == table
    compare(monkeypatch, capsys, *options, "--methods", "lora", "--seeds", 0, 1, 2)
    assert {file: file.stat().st_mtime_ns for file in results.values()} == times
    assert len(list(out.glob("*.json"))) == len(times) + 1


def test_one_half_of_the_contexts_chooses_the_rate_and_the_other_is_reported(
    data: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    parser = baselines._parser()
    arguments = ["--model", tiny_folder, *data, "--out", tmp_path, "--full-rates", 1e-5, 1e-4]
    comparison = baselines.Comparison(parser.parse_args(list(map(str, arguments))))
    # Two questions on each of four contexts; the first and the third choose.
    right = {1e-5: [0, 0, 1, 1, 0, 0, 1, 1], 1e-4: [1, 0, 0, 0, 0, 0, 1, 0]}
    for rate, scores in right.items():
        answers = dict(zip(comparison._ids, [[x, x] for x in scores], strict=True))
        file = comparison._file(baselines.Training("full", rate, 0))
        file.write_text(json.dumps({"answers": answers}))
    chosen = comparison._seeded("full")
    assert [(each.rate, each.seed) for each in chosen] == [(1e-4, 0), (1e-4, 1), (1e-4, 2)]
    reported = comparison._reported(chosen[:1])
    np.testing.assert_array_equal(reported[0, :, 1], [0, 0, 100, 0])


def test_a_model_without_biases_leaves_bitfit_out(
    data: list[str],
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    options = ["--model", tmp_path / "llama", *data, "--out", tmp_path / "out", "--seeds", 0]
    options += ["--lora-rates", "1e-3", "--bitfit-rates", "1e-3", "--full-rates", "1e-4"]
    table, errors = compare(
        monkeypatch, capsys, *options, "--set", "optimisation.max_steps=1", "model.dtype=float32"
    )
    assert cells(table)[""] == ["LoRA", "full fine-tuning"]
    assert "has none. It is left out." in errors

"""What a reader can be loaded from: a run, an adapter, a merged or a plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.answer.conftest import PASSAGES
from tests.conftest import tiny_model

from loraqa.answer.reader import Reader
from loraqa.errors import InputError
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import load_adapter, save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge_and_unload
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import load_base
from loraqa.model.runner import TreeRunner
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.train.adapter_folder import AdapterInfo, describe_base, write_adapter_info
from loraqa.train.settings import ModelSettings


@pytest.fixture(scope="module")
def adapted(tiny_folder: Path) -> Any:
    """A tiny model with an adapter that changes its answers."""
    model, _ = load_base(tiny_folder, dtype="float32", device="cpu")
    adapt(model, LoraSettings(rank=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.3)
    return model


@pytest.fixture
def info(tiny_folder: Path, adapted: Any) -> AdapterInfo:
    return AdapterInfo(
        base=describe_base(ModelSettings(source=str(tiny_folder)), adapted),
        template="{context} Q: {question} A: {answer}",
        max_length=200,
        stride=30,
        max_answer_tokens=9,
        version="2.0",
    )


@pytest.fixture
def run(tmp_path: Path, adapted: Any, info: AdapterInfo) -> Path:
    save_adapter(adapted, tmp_path / "run" / "adapter")
    write_adapter_info(tmp_path / "run" / "adapter", info)
    return tmp_path / "run"


def test_loads_a_run_an_adapter_and_a_merged_model(
    run: Path, adapted: Any, info: AdapterInfo, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    other, _ = load_base(info.base.source, dtype="float32", device="cpu")
    load_adapter(other, run / "adapter")
    merge_and_unload(other, torch.arange(20)[None])
    other.save_pretrained(merged)
    tiny_tokenizer.save_pretrained(merged)
    write_adapter_info(merged, info)

    expected = Reader(
        TreeRunner(adapted), SegmentTokenizer(tiny_tokenizer), Template(info.template), 200, 30, 9
    ).answer(PASSAGES[0].context, ["Who?", "When?"], "greedy")
    plain = Reader.load(info.base.source, dtype="float32").answer(PASSAGES[0].context, ["Who?"])
    assert plain[0].text != expected[0].text
    for source in (run, run / "adapter", merged):
        reader = Reader.load(source, device="cpu")
        assert (reader.template.text, reader.max_length, reader.stride) == (info.template, 200, 30)
        assert (reader.max_answer_tokens, reader.no_answer) == (9, True)
        answers = reader.answer(PASSAGES[0].context, ["Who?", "When?"])
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        for ours, theirs in zip(answers, expected, strict=True):
            assert ours.log_probability == pytest.approx(theirs.log_probability, rel=1e-3)


def test_loads_a_model_that_was_not_fine_tuned(tiny_folder: Path) -> None:
    reader = Reader.load(tiny_folder, device="cpu")
    assert reader.template == Template()
    assert (reader.max_length, reader.no_answer) == (256, False)
    assert len(reader.answer("A king.", ["Who?"])) == 1


def test_warns_of_another_base(
    run: Path, tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Reader.load(run, device="cpu")
    assert not caplog.records
    other = tiny_model("gpt2")
    with torch.no_grad():
        other.transformer.wpe.weight[0] += 1
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    Reader.load(run, base=tmp_path / "other", device="cpu")
    assert "is not the one that the adapter was trained on" in caplog.text


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model.*--resume"):
        Reader.load(tmp_path)


def test_a_base_that_is_gone_is_named(run: Path, info: AdapterInfo) -> None:
    base = info.base.model_copy(update={"source": "/nowhere/base"})
    write_adapter_info(run / "adapter", info.model_copy(update={"base": base}))
    with pytest.raises(InputError, match="/nowhere/base does not exist"):
        Reader.load(run)

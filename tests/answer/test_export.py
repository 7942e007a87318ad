"""Exports work without loraqa: an adapter for PEFT, a model for transformers."""

import logging
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from tests.answer.conftest import PASSAGES
from tests.conftest import assert_near
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from loraqa.adapter.info import AdapterInfo, read_adapter_info, write_adapter_info
from loraqa.answer.export import export_adapter, export_merged
from loraqa.answer.load import load_model
from loraqa.errors import InputError
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.reader import Reader

QUESTIONS = ["Who?", "When?"]


@pytest.fixture
def bfloat16_run(run: Path, info: AdapterInfo) -> Path:
    """A run over a base in bfloat16."""
    base = info.base.model_copy(update={"dtype": "bfloat16"})
    write_adapter_info(run / "adapter", info.model_copy(update={"base": base}))
    (run / "adapter" / "README.md").write_text("# Scores")
    return run


def written_by_transformers(folder: Path, template: Template, question: str, most: int) -> str:
    """Return transformers' greedy answer about the first passage."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(folder))
    segments = [template.context(PASSAGES[0].context), template.question(question)]
    prompt = [i for encoding in tokenizer.encode(segments) for i in encoding.ids]
    ids = torch.tensor([[*tokenizer.start, *prompt]])
    stops = [tokenizer.eos, *tokenizer.line_breaks]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.eos,
        begin_suppress_tokens=[tokenizer.eos],
    )
    return tokenizer.decode([i for i in output[0, ids.shape[1] :].tolist() if i not in stops])


def test_a_merged_model_is_in_float32_and_answers_with_transformers_alone(
    bfloat16_run: Path, info: AdapterInfo, tmp_path: Path
) -> None:
    change = export_merged(bfloat16_run, tmp_path / "merged")
    apart = load_model(bfloat16_run, dtype="float32", device="cpu").model
    assert change < 1e-4 * apart(torch.arange(1, 30)[None]).logits.abs().max()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32
    modes = {path.stat().st_mode for path in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "as readable as any other file"
    exact = Reader.load(bfloat16_run, dtype="float32", device="cpu")
    exact = replace(exact, no_answer_threshold=None)
    expected = [answer.text for answer in exact.answer(PASSAGES[0].context, QUESTIONS, "greedy")]
    merged = replace(Reader.load(tmp_path / "merged", device="cpu"), no_answer_threshold=None)
    assert [a.text for a in merged.answer(PASSAGES[0].context, QUESTIONS, "greedy")] == expected
    template = Template(info.template)
    for question, text in zip(QUESTIONS, expected, strict=True):
        by_transformers = written_by_transformers(
            tmp_path / "merged", template, question, info.max_answer_tokens
        )
        assert by_transformers == text


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_changed_file_of_a_merged_model_is_noticed(run: Path, tmp_path: Path, name: str) -> None:
    merged = tmp_path / "merged"
    export_merged(run, merged)
    path = merged / name
    data = path.read_bytes()
    if name == "config.json":
        changed = data.replace(b'"n_layer": ', b'"n_layer": 1')
    else:
        changed = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(InputError, match=f"hashes in loraqa.json do not fit {name};"):
        load_model(merged)
    path.write_bytes(data)
    load_model(merged)


def test_a_model_without_prompt_settings_is_named(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_merged(run, tmp_path / "merged")
    (tmp_path / "merged" / "loraqa.json").unlink()
    with caplog.at_level(logging.INFO, "loraqa"):
        Reader.load(tmp_path / "merged", device="cpu")
    assert any("has no loraqa.json, so it is a model that" in line for line in caplog.messages)


def test_a_merged_model_has_its_own_card_beside_the_adapters(
    bfloat16_run: Path, info: AdapterInfo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_merged(bfloat16_run, tmp_path / "merged")
    assert capfd.readouterr().err == "", "no progress bars of transformers"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "in float32" in card
    assert f"    {info.template}" in card
    assert (tmp_path / "merged" / "adapter.md").read_text() == "# Scores"


def test_an_exported_adapter_has_the_present_path_of_its_base(
    bfloat16_run: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "link").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    export_adapter(bfloat16_run, Path("adapter"), base="link")
    monkeypatch.chdir("/")
    assert read_adapter_info(tmp_path / "adapter").base.source == str(tiny_folder.resolve())
    assert (tmp_path / "adapter" / "README.md").read_text() == "# Scores"
    ours = load_model(bfloat16_run, dtype="float32", device="cpu").model
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype="float32")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        assert_near(ours(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits, 1e-5)


def test_an_export_that_cannot_be_written_names_its_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers raise a bare `Exception` when the disk fails."""

    def fail(*_: object) -> None:
        raise Exception("Input/output error (os error 5)")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(OSError, match=r"merged cannot be written \(Input/output error"):
        export_merged(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_finished_export_of_a_killed_process_is_cleaned_up(run: Path, tmp_path: Path) -> None:
    (tmp_path / "peft").mkdir()
    (tmp_path / ".loraqa-unfinished-x").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export_adapter(run, tmp_path / "peft")
    assert not (tmp_path / ".loraqa-unfinished-x").exists()


def test_an_existing_folder_is_not_overwritten(run: Path) -> None:
    with pytest.raises(InputError) as caught:
        export_adapter(run, run)
    assert str(caught.value) == f"{run} exists already; name a new folder."

"""Loading a reader from a run, an adapter, a merged model or a plain model."""

import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.answer.conftest import PASSAGES
from tests.conftest import assert_near, tiny_model
from transformers import AutoModelForCausalLM

from loraqa.adapter.find import adapter_of, check_source
from loraqa.adapter.info import AdapterInfo, write_adapter_info
from loraqa.answer.export import export_adapter, export_merged
from loraqa.answer.load import load_adapted, load_model
from loraqa.errors import InputError
from loraqa.lora.adapter import load_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.merge import merge_and_unload
from loraqa.lora.settings import TENSORS
from loraqa.model.load import load_base
from loraqa.model.runner import TreeRunner
from loraqa.model.source import load_tokenizer
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
from loraqa.reader import Reader
from loraqa.speed.cpu.prepacked import PrepackedLinear


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
        TreeRunner(adapted),
        SegmentTokenizer.from_transformers(tiny_tokenizer),
        Template(info.template),
        200,
        30,
        max_answer_tokens=9,
    ).answer(PASSAGES[0].context, ["Who?", "When?"], "greedy")
    plain = Reader.load(info.base.source, dtype="float32").answer(
        PASSAGES[0].context, ["Who?"], "greedy"
    )
    assert plain[0].text != expected[0].text
    for source in (run, run / "adapter", merged):
        reader = Reader.load(source, device="cpu")
        assert (reader.template.text, reader.max_length, reader.stride) == (info.template, 200, 30)
        assert (reader.max_answer_tokens, reader.learned_no_answer) == (9, True)
        assert reader.no_answer_threshold == 0.5
        reader = replace(reader, no_answer_threshold=None)
        answers = reader.answer(PASSAGES[0].context, ["Who?", "When?"], "greedy")
        assert [answer.text for answer in answers] == [answer.text for answer in expected]
        for ours, theirs in zip(answers, expected, strict=True):
            assert ours.log_probability == pytest.approx(theirs.log_probability, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("supported", [True, False])
def test_a_bfloat16_run_answers_in_float32_if_the_processor_lacks_bfloat16(
    supported: bool, run: Path, info: AdapterInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    base = info.base.model_copy(update={"dtype": "bfloat16"})
    write_adapter_info(adapter, info.model_copy(update={"base": base}))
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: supported)
    model = load_model(adapter, device="cpu").model
    assert model.dtype == (torch.bfloat16 if supported else torch.float32)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_a_reader_on_a_cpu_has_prepacked_weights(run: Path, tiny_folder: Path) -> None:
    for source in (run, tiny_folder):
        model = Reader.load(source, dtype="float32", device="cpu").runner.model
        assert not lora_layers(model)
        assert isinstance(model.lm_head, PrepackedLinear)


def test_loads_a_model_that_was_not_fine_tuned(tiny_folder: Path) -> None:
    reader = Reader.load(tiny_folder, device="cpu")
    assert reader.template == Template()
    assert (reader.max_length, reader.learned_no_answer) == (256, False)
    assert reader.no_answer_threshold is None
    assert len(reader.answer("A king.", ["Who?"])) == 1


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_answers_in_float16_are_those_in_float32_but_for_rounding(
    kind: str, tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    half, full = (
        Reader.load(tmp_path, dtype=dtype, device="cpu") for dtype in ("float16", "float32")
    )
    assert half.runner.model.dtype == torch.float16
    assert "cannot" not in caplog.text
    for strategy in ("span", "beam:3"):
        asked = (PASSAGES[0].context, ["Who?"], 3, strategy)
        (ours,), (theirs,) = half.candidates(*asked), full.candidates(*asked)
        known = {answer.text: answer.log_probability for answer in theirs}
        near = [answer for answer in ours if answer.text in known]
        assert near
        for answer in near:
            assert answer.log_probability == pytest.approx(known[answer.text], abs=0.05)


def test_another_base_causes_a_warning(
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


@pytest.mark.parametrize("source", ["merged", "gpt2"])
def test_a_base_of_a_model_without_an_adapter_is_refused(
    source: str, tiny_folder: Path, info: AdapterInfo, tmp_path: Path
) -> None:
    place = source
    if source == "merged":
        place = shutil.copytree(tiny_folder, tmp_path / source)
        write_adapter_info(place, info)
    for read in (Reader.load, load_model, check_source):
        with pytest.raises(InputError, match=rf"^{place} holds no adapter.* leave the base"):
            read(place, base=tiny_folder)


def test_a_base_that_the_adapter_does_not_fit_is_refused_without_a_warning(
    run: Path, tmp_path: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="load the base model it was trained on"):
        load_model(run, base=tmp_path / "other", device="cpu")
    assert not caplog.records


def test_a_base_that_changed_in_its_place_is_refused_with_what_changed(
    run: Path, info: AdapterInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = shutil.copytree(info.base.source, tmp_path / "base")
    there = info.base.model_copy(update={"source": str(base)})
    write_adapter_info(run / "adapter", info.model_copy(update={"base": there}))
    load_model(run, device="cpu")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"n_head": 2}))
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    changed = r"configuration \(n_head was 4, now 2\) and tokenizer changed"
    for load in (load_model, load_adapted):
        with pytest.raises(InputError, match=f"{base} is not what .*: {changed}; .* --base"):
            load(run, device="cpu")
    assert not caplog.records
    load_model(run, base=base, device="cpu")
    assert re.search(changed, caplog.text)


def test_every_reader_of_adapters_finds_a_flipped_bit(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / TENSORS
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)
    for read in (
        lambda: Reader.load(run, device="cpu"),
        lambda: Reader.load(run / "adapter", device="cpu"),
        lambda: load_adapted(run, device="cpu"),
        lambda: export_adapter(run, tmp_path / "exported"),
        lambda: export_merged(run, tmp_path / "merged"),
    ):
        with pytest.raises(InputError, match=f"is damaged, .* do not fit {TENSORS};"):
            read()


@pytest.mark.parametrize("installed", [True, False], ids=["with PEFT", "without PEFT"])
def test_a_folder_with_a_base_and_its_adapter_is_an_adapter_applied_once(
    installed: bool, run: Path, info: AdapterInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run / "adapter"
    alone = load_model(folder, dtype="float32", device="cpu").model
    shutil.copytree(info.base.source, folder, dirs_exist_ok=True)
    for where in ("models.auto.auto_factory", "integrations.peft", "utils.peft_utils"):
        monkeypatch.setattr(f"transformers.{where}.is_peft_available", lambda: installed)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        expected = alone(input_ids=ids).logits
        for base in (None, folder):
            model = load_model(folder, base=base, dtype="float32", device="cpu").model
            assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model.*; give another folder"):
        Reader.load(tmp_path)
    (tmp_path / "settings.yaml").touch()
    with pytest.raises(InputError, match="holds no model.*--resume"):
        Reader.load(tmp_path)


def test_the_named_subfolder_of_a_peft_adapter_is_named(
    from_peft: tuple[Path, Any], tmp_path: Path
) -> None:
    _, theirs = from_peft
    theirs.add_adapter("physics", peft.LoraConfig(r=2, target_modules=["c_attn"]))
    theirs.save_pretrained(tmp_path / "saved", selected_adapters=["physics"])
    for read in (Reader.load, adapter_of):
        with pytest.raises(InputError, match=f"holds no .*; give {tmp_path}/saved/physics"):
            read(tmp_path / "saved")
    load_model(tmp_path / "saved" / "physics", device="cpu")


@pytest.mark.parametrize(
    ("name", "there", "message"),
    [
        (
            "model.gguf",
            True,
            "model.gguf is (not a GGUF file, because|a base model;)",
        ),
        ("model.gguf", False, "There is no file .*model.gguf"),
        ("train.json", True, "is a file, not a model's folder"),
        ("model.safetensors", True, "is a file, not a model's folder"),
        ("train.json", False, "There is no folder .*train.json"),
    ],
)
@pytest.mark.parametrize("full", [True, False])
def test_a_file_given_as_a_model_is_never_asked_of_the_hub(
    name: str,
    there: bool,
    message: str,
    full: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the hub was asked"))
    if there:
        (tmp_path / name).touch()
    given = str(tmp_path / name) if full else name
    for read in (Reader.load, check_source, adapter_of, load_base, load_tokenizer):
        with pytest.raises(InputError, match=message):
            read(given)


def test_a_folder_of_gguf_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "model-Q4.gguf").touch()
    for read in (Reader.load, load_base):
        with pytest.raises(InputError, match=f"give.* {tmp_path / 'model-Q4.gguf'}\\b"):
            read(tmp_path)


def test_a_run_is_no_base(run: Path) -> None:
    for folder in (run, run / "adapter"):
        with pytest.raises(InputError, match="it holds an adapter, which needs a base model"):
            load_base(folder)


def test_the_parent_folder_of_a_run_is_refused_with_the_runs_path(run: Path) -> None:
    with pytest.raises(InputError, match=f"holds no model.*; give {run}."):
        Reader.load(run.parent)


def test_a_missing_path_is_not_taken_for_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no folder .*/nope; give a finished run"):
        Reader.load(tmp_path / "nope")


def test_a_missing_base_is_named(run: Path, info: AdapterInfo) -> None:
    base = info.base.model_copy(update={"source": "/nowhere/base"})
    write_adapter_info(run / "adapter", info.model_copy(update={"base": base}))
    with pytest.raises(InputError, match=f"of {run}/adapter, /nowhere/base, .* with --base"):
        Reader.load(run)


def test_facts_that_only_one_side_knows_about_the_base_cause_no_warning(
    run: Path, info: AdapterInfo, caplog: pytest.LogCaptureFixture
) -> None:
    """The run was trained on a hub model whose weights were not hashed; the base is a folder."""
    base = info.base.model_copy(update={"source": "gpt2", "revision": "12", "sha256": None})
    write_adapter_info(run / "adapter", info.model_copy(update={"base": base}))
    Reader.load(run, base=info.base.source, device="cpu")
    assert not caplog.records


def test_a_moved_base_is_recorded_with_its_new_path(
    run: Path, info: AdapterInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(info.base.source, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    _, _, loaded = load_adapted(run, base="moved", device="cpu")
    base = info.base.model_copy(update={"source": str(tmp_path / "moved")})
    assert loaded == info.model_copy(update={"base": base})


@pytest.fixture
def from_peft(tmp_path: Path, tiny_folder: Path) -> tuple[Path, Any]:
    """Return a folder with an adapter that PEFT saved, and PEFT's model."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft", model


@pytest.mark.parametrize("named", [False, True])
def test_an_adapter_saved_by_peft_has_pefts_logits(
    from_peft: tuple[Path, Any],
    tiny_folder: Path,
    caplog: pytest.LogCaptureFixture,
    named: bool,
) -> None:
    folder, theirs = from_peft
    base = tiny_folder if named else None
    reader = Reader.load(folder, base=base, dtype="float32", device="cpu")
    assert caplog.messages == [
        f"{folder} has no loraqa.json to say how its prompts were written; they are assumed to be "
        f"{DEFAULT_TEMPLATE!r}."
    ]
    assert (reader.template, reader.max_length) == (Template(), 256)
    assert len(reader.answer("A king.", ["Who?"])) == 1
    loaded = load_model(folder, base=base, dtype="float32", device="cpu")
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        ours = loaded.model(input_ids=ids).logits
        assert_near(ours, theirs(input_ids=ids).logits, 1e-5)


def test_an_adapter_without_a_base_name_is_refused(from_peft: tuple[Path, Any]) -> None:
    folder, _ = from_peft
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not name its base model; .*--base"):
        Reader.load(folder)

"""Several adapters over one base answer as each does alone, at once, and added."""

import gc
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from tests.answer.conftest import PASSAGES
from tests.conftest import tiny_model
from tests.random_runs import random_run
from transformers import AutoModelForCausalLM

from loraqa.adapter.info import BetaCurve, Calibration
from loraqa.answer.answered import Answered
from loraqa.answer.export import export_sum
from loraqa.answer.reader import Reader as PlainReader
from loraqa.answer.readers import Readers
from loraqa.errors import InputError
from loraqa.model.load import load_base
from loraqa.reader import Reader, load_readers

OTHER = "{context} Q: {question} A: {answer}"
TEXT, QUESTIONS = PASSAGES[0].context, ["Who built the mill?", "When?"]

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Return a function that makes an adapter folder with random matrices."""

    def make(seed: int, *, of: Path = base, **settings: Any) -> Path:
        return random_run(tmp_path_factory.mktemp("run"), of, seed, **settings)

    return make


@pytest.fixture(scope="module")
def runs(make_run: MakeRun) -> dict[str, Path]:
    """Adapters of every kind, with other ranks, targets, prompts and lengths."""
    calibration = Calibration(answer=BetaCurve(a=1.0, b=0.5, c=0.1), questions=9)
    return {
        "plain": make_run(1, info={"calibration": calibration}),
        "other": make_run(2, info={"template": OTHER, "max_length": 60, "stride": 9}, rank=7),
        "attention": make_run(3, target_modules="attention", rank_stabilised=True),
        "pattern": make_run(4, rank_pattern={"mlp.*": 2}),
        "dora": make_run(5, dora=True, target_modules="mlp"),
        "activated": make_run(6, activated=True),
        "pissa": make_run(7, initialisation="pissa", rank=2),
    }


@pytest.fixture(scope="module")
def readers(runs: dict[str, Path]) -> Readers:
    return load_readers(runs)


def answers(reader: PlainReader) -> list[list[Answered]]:
    return [
        each
        for strategy in ("span", "greedy")
        for each in reader.candidates(TEXT, QUESTIONS, 2, strategy)
    ]


def test_each_answers_as_alone_to_the_bit(runs: dict[str, Path]) -> None:
    readers = load_readers(runs, without="prepacked-weights")
    alone = {name: Reader.load(run, without="prepacked-weights") for name, run in runs.items()}
    expected = {name: answers(reader) for name, reader in alone.items()}
    assert len({repr(found) for found in expected.values()}) == len(runs)
    for name in [*runs, *reversed(runs)]:
        assert answers(readers[name]) == expected[name], name


def test_packed_weights_hold_no_update(runs: dict[str, Path]) -> None:
    """Updates stay beside them. Alone those in bf16 and of aLoRA do so, too, up to rounding."""
    for dtype, names, error in (
        ("bfloat16", list(runs)[::2], 0.01),
        ("float32", ["activated"], 1e-5),
    ):
        readers = load_readers({name: runs[name] for name in names}, dtype=dtype)
        for name in names:
            alone = answers(Reader.load(runs[name], dtype=dtype))
            for found, expected in zip(answers(readers[name]), alone, strict=True):
                probabilities = [answer.log_probability for answer in expected]
                assert [answer.log_probability for answer in found] == pytest.approx(
                    probabilities, rel=error
                ), name


def test_in_fp32_packed_weights_change_rounding_alone(runs: dict[str, Path]) -> None:
    names = ["plain", "pattern", "dora"]
    readers = load_readers({name: runs[name] for name in names})
    for name in names:
        alone = answers(Reader.load(runs[name]))
        for ours, theirs in zip(answers(readers[name]), alone, strict=True):
            assert [each.text for each in ours] == [each.text for each in theirs], name
            actual, expected = (each[0].log_probability for each in (ours, theirs))
            assert actual == pytest.approx(expected, rel=1e-4, abs=1e-5)


def weights_in_memory() -> int:
    """Count the numbers in all matrices, besides the thin ones of adapters; packed ones apart."""
    gc.collect()
    with warnings.catch_warnings():
        # Torch warns of some of its own objects when they are looked at.
        warnings.simplefilter("ignore")
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    thick = [each for each in tensors if each.ndim == 2 and min(each.shape) >= 32]
    plain = {each.data_ptr(): each.numel() for each in thick if not each.is_mkldnn}
    return sum(plain.values()) + sum({id(e): e.numel() for e in thick if e.is_mkldnn}.values())


@pytest.mark.parametrize("without", ["", "all"])
def test_the_base_is_in_memory_once(runs: dict[str, Path], base: Path, without: str) -> None:
    before = weights_in_memory()
    alone = Reader.load(base, dtype="float32", without=without)
    expected = weights_in_memory() - before
    assert expected > 0
    del alone
    several = load_readers(runs, without=without)
    assert weights_in_memory() - before == expected
    added = several.choose("plain:1+attention:1")
    assert weights_in_memory() - before == expected
    del several, added


def test_requests_in_several_threads_do_not_mix(readers: Readers) -> None:
    sums = {"sum": "plain:0.5+attention:2", "pair": "pattern:1+pissa:-1"}
    chosen = {**readers, **{name: readers.choose(text) for name, text in sums.items()}}
    expected = {name: answers(reader) for name, reader in chosen.items()}
    start, wrong = Barrier(4), list[str]()

    def ask(names: list[str]) -> None:
        start.wait()
        wrong.extend(name for name in names if answers(chosen[name]) != expected[name])

    orders = [list(chosen)[turn:] + list(chosen)[:turn] for turn in range(4)]
    threads = [Thread(target=ask, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_installed_outside_of_an_answer(runs: dict[str, Path], base: Path) -> None:
    """The model that readers share is the base as long as none of them computes."""
    readers = load_readers(runs, without="all")
    ids = torch.arange(20)[None]
    answers(readers["plain"])
    plain, _ = load_base(base, dtype="float32", device="cpu")
    model = readers["plain"].runner.model
    model.set_attn_implementation(plain.config._attn_implementation)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)


SUMS = ["plain:0.7+attention:0.3", "pattern:1+pissa:-0.5", "attention:2"]


@pytest.mark.parametrize("choice", SUMS)
def test_a_sum_answers_as_its_saved_adapter(
    runs: dict[str, Path], choice: str, tmp_path: Path
) -> None:
    export_sum(choice, runs, tmp_path / "sum")
    saved = load_readers({"sum": tmp_path / "sum"})["sum"]
    readers = load_readers(runs)
    added = readers.choose(choice)
    assert answers(added) == answers(saved)
    assert answers(added) not in [answers(readers[name]) for name in ("plain", "attention")]
    assert added.calibration is saved.calibration is None
    card = (tmp_path / "sum" / "README.md").read_text()
    first, weight = choice.split("+")[0].split(":")
    assert f"- {weight} times `{runs[first]}`" in card


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*is_gradient_checkpointing")
def test_a_sum_of_peft_s_adapters(base: Path, tmp_path: Path) -> None:
    """PEFT's folders, which say nothing of prompts, are added as PEFT adds them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    theirs = peft.get_peft_model(model, config, "law")
    theirs.add_adapter("news", config)
    theirs.add_weighted_adapter(["law", "news"], [0.7, 0.3], "sum", combination_type="cat")
    theirs.save_pretrained(tmp_path)
    names = ("law", "news", "sum")
    readers = load_readers({name: tmp_path / name for name in names}, dtype="float32")
    for ours, expected in zip(
        answers(readers.choose("law:0.7+news:0.3")), answers(readers["sum"]), strict=True
    ):
        assert [each.text for each in ours] == [each.text for each in expected]
        assert ours[0].log_probability == pytest.approx(expected[0].log_probability, rel=1e-4)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ("nobody", "There is no adapter 'nobody'; give one of plain, other, .*plain:0.7"),
        ("plian:1", "did you mean plain"),
        ("", "There is no adapter ''"),
        ("plain:1+nobody:2", "There is no adapter 'nobody'"),
        ("plain+attention", "gives plain no weight"),
        ("plain:much", "gives plain no weight"),
        ("plain:nan", "gives plain no weight"),
        ("plain:1e9", "gives plain no weight"),
        ("plain:1+plain:2", "names plain twice"),
        ("plain:1+other:1", "prompts of plain and other are written by different templates"),
        ("plain:1+dora:1", "dora was trained with DoRA"),
        ("plain:1+activated:1", "plain and activated act on different tokens"),
    ],
)
def test_what_cannot_be_chosen_is_refused(readers: Readers, choice: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        readers.choose(choice)


def test_readers_are_a_mapping_of_names(readers: Readers, runs: dict[str, Path]) -> None:
    assert list(readers) == list(runs)
    assert "plain:1+attention:1" not in readers
    assert readers.choose("plain") is readers.choose("plain:1") is readers["plain"]
    assert (readers["other"].template.text, readers["other"].max_length) == (OTHER, 60)
    assert readers["plain"].calibration
    changed = readers.replaced(most_windows=1)
    assert {reader.most_windows for reader in changed.values()} == {1}
    assert changed.choose("plain:1+attention:1").most_windows == 1


def test_identities_differ_by_adapter_and_weights(readers: Readers, runs: dict[str, Path]) -> None:
    several = [
        *readers.values(),
        *(readers.choose(f"plain:{weight}+attention:1") for weight in (1, 2)),
        Reader.load(runs["plain"]),
    ]
    assert len({each.identify() for each in several}) == len(runs) + 3
    assert readers["plain"].identify() == readers["plain"].identify()


@pytest.fixture(scope="module")
def other_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with other weights."""
    folder = tmp_path_factory.mktemp("other") / "base"
    model, tokenizer = load_base(base, dtype="float32", device="cpu")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("with_info", [True, False])
def test_adapters_of_different_bases_are_refused(
    runs: dict[str, Path], make_run: MakeRun, other_base: Path, base: Path, with_info: bool
) -> None:
    stranger = make_run(9, of=other_base)
    if not with_info:
        (stranger / "loraqa.json").unlink()
    pair = {"plain": runs["plain"], "stranger": stranger}
    says = f"were trained on different base models, {base} and {other_base}, .* --base."
    with pytest.raises(InputError, match=says):
        load_readers(pair)
    assert answers(load_readers(pair, base=base)["plain"])


def test_a_copy_of_the_base_is_the_same_base(
    runs: dict[str, Path], make_run: MakeRun, base: Path, tmp_path: Path
) -> None:
    copied = make_run(8, of=shutil.copytree(base, tmp_path / "copy"))
    alone = answers(load_readers({"copied": copied})["copied"])
    for name in ("with loraqa.json", "without"):
        readers = load_readers({"plain": runs["plain"], "copied": copied})
        if name == "without":
            assert readers["copied"].stride != 30
        else:
            assert answers(readers["copied"]) == alone
        (copied / "loraqa.json").unlink(missing_ok=True)


def test_adapters_of_different_dtypes_compute_in_the_widest(
    runs: dict[str, Path], make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    both = {"short": make_run(9, dtype="bfloat16"), "plain": runs["plain"]}
    assert load_readers(both)["short"].runner.model.dtype == torch.float32
    assert "short computed in a narrower dtype" in caplog.text
    caplog.clear()
    assert load_readers(both, dtype="float64")["short"].runner.model.dtype == torch.float64
    assert not caplog.text


def test_an_adapter_that_changes_nothing_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    empty = shutil.copytree(runs["plain"], tmp_path / "empty")
    (empty / "loraqa.json").unlink()
    config = json.loads((empty / "adapter_config.json").read_text())
    config["target_modules"] = ["nothing"]
    (empty / "adapter_config.json").write_text(json.dumps(config))
    save_file({}, empty / "adapter_model.safetensors")
    with pytest.raises(InputError, match="changes no layer of its base"):
        load_readers({"plain": runs["plain"], "empty": empty})


def test_the_base_may_have_moved(
    runs: dict[str, Path], make_run: MakeRun, base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(base, tmp_path / "copy")
    moved = make_run(8, of=copy)
    shutil.rmtree(copy)
    assert answers(load_readers({"plain": runs["plain"], "moved": moved})["moved"])


@pytest.mark.parametrize("name", ["", "a+b", "a:b", "a b", "a=b"])
def test_a_name_is_a_word(runs: dict[str, Path], name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of an adapter"):
        load_readers({name: runs["plain"]})


def test_no_adapters_are_refused() -> None:
    with pytest.raises(InputError, match="There are no adapters to load"):
        load_readers({})


def test_another_template_must_begin_where_an_activated_adapter_acts(
    runs: dict[str, Path],
) -> None:
    with pytest.raises(InputError, match="give the template of its training"):
        load_readers(
            {"activated": runs["activated"]}, template="{context} Ask {question} Say {answer}"
        )

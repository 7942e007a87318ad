"""A training that goes on from an adapter: it begins with what that one computes, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Call, assert_near, tiny_model, town_passages
from tests.model.test_session import rows_of
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraqa.answer.load import load_model
from loraqa.errors import InputError
from loraqa.finetuning import finetune
from loraqa.finetuning.ready import Ready, get_ready
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import TENSORS
from loraqa.prompt.template import DEFAULT_TEMPLATE
from loraqa.squad import write_official
from loraqa.train.settings import RunSettings, load_settings

pytestmark = pytest.mark.usefixtures("without_plots")

OPTIONS = (
    "optimisation.max_steps=4",
    "optimisation.questions_per_step=4",
    "optimisation.epochs=9",
    "optimisation.learning_rate=1e-2",
    "checkpoint.every=2",
    "evaluation.max_answer_tokens=8",
)
PASSAGES = town_passages(6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[[str], Path]:
    """Return a function that returns the folder of a tiny base of a family."""
    place = tmp_path_factory.mktemp("bases")

    def folder(family: str) -> Path:
        path = place / family
        if not path.exists():
            tiny_model(family).save_pretrained(path)
            tiny_tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data of the adapter that is there, and those to go on with."""
    folder = tmp_path_factory.mktemp("data")
    for name, some in {"old": PASSAGES[:3], "new": PASSAGES[3:]}.items():
        write_official(folder / f"{name}.json", some, "1.1")
    return {name: f"{folder / name}.json" for name in ("old", "new")}


@pytest.fixture(scope="module")
def old(
    base: Callable[[str], Path], data: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run to go on from."""
    return train_old(base("gpt2"), data, tmp_path_factory.mktemp("runs") / "old", *OLD)


OLD = ("lora.rank=3", "lora.alpha=5", "lora.alpha_pattern={attn.c_proj: 7}")


def train_old(base: Path, data: dict[str, str], out: Path, *overrides: str) -> Path:
    sources = (f"model.source={base}", "model.dtype=float32", f"data.train={data['old']}")
    words = (f"data.dev={data['new']}", "prompt.template=C: {context} Q: {question} A:{answer}")
    finetune(load_settings(overrides=[*OPTIONS, *sources, *words, *overrides]), out)
    return out


def going_on(start: Path, data: dict[str, str], *overrides: str) -> RunSettings:
    sources = (f"lora.start={start}", f"data.train={data['new']}", f"data.dev={data['new']}")
    return load_settings(overrides=[*OPTIONS, *sources, *overrides])


def computes(ready: Ready, other: Any) -> None:
    """Check that a training begins with the logits of PEFT's model, which are not the base's."""
    trees = ready.reader.encoder.encode_prompts(PASSAGES, 8).trees
    _, logits = ready.reader.runner.prefill(trees)

    def expected() -> Tensor:
        with torch.no_grad():
            rows = [other(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows_of(trees)]
        return torch.stack(rows)

    assert_near(logits, expected(), 1e-4)
    with other.disable_adapter():
        assert (logits - expected()).norm() > 0.01 * logits.norm()


def by_peft(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(model, adapter).eval()


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("gpt2", ("lora.rank=3",)),
        ("gpt2", ("lora.rank=3", "lora.target_modules=['c_attn[q,v]', mlp.c_proj]")),
        ("gpt2", ("lora.rank=2", "lora.initialisation=pissa")),
        ("llama", ("lora.rank=3", "lora.rank_pattern={q_proj: 2}", "lora.rank_stabilised=true")),
        ("llama", ("lora.dora=true", "lora.rank=4", "lora.alpha=6")),
        ("llama", ("lora.activated=true", "lora.target_modules=attention")),
    ],
)
def test_step_0_computes_what_the_old_adapter_computes(
    base: Callable[[str], Path],
    data: dict[str, str],
    tmp_path: Path,
    family: str,
    variant: tuple[str, ...],
) -> None:
    old = train_old(base(family), data, tmp_path / "old", *variant)
    settings = going_on(old, data)
    assert settings.model.source == str(base(family))
    assert settings.prompt.template == "C: {context} Q: {question} A:{answer}"
    ready = get_ready(settings)
    computes(ready, by_peft(base(family), old / "adapter"))
    save_adapter(ready.runner.model, tmp_path / "saved")
    saved, matrices = load_file(tmp_path / "saved" / TENSORS), load_file(old / "adapter" / TENSORS)
    assert saved.keys() == matrices.keys()
    assert all(saved[key].equal(matrix) for key, matrix in matrices.items())


def test_a_run_starts_with_the_old_scores_and_is_repeated_and_resumed_to_the_bit(
    old: Path, data: dict[str, str], tmp_path: Path, call: Call
) -> None:
    start = shutil.copytree(old, tmp_path / "start")
    words = ("--from", start, "--train", data["new"], "--dev", data["new"])
    sets = [word for option in OPTIONS for word in ("--set", option)]
    run = tmp_path / "run"
    status, _, error = call("train", *words, *sets, "--out", run)
    assert status == 0, error
    records = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    scored = json.loads((old / "metrics.jsonl").read_text().splitlines()[-1])
    assert [records[0][key] for key in ("step", "f1")] == [0, scored["f1"]]
    learned = weights(run)
    assert learned != weights(old)

    status, _, error = call("train", run / "settings.yaml", "--out", tmp_path / "again")
    assert (status, weights(tmp_path / "again")) == (0, learned), error

    shutil.rmtree(start)
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "step-000004")
    status, _, error = call("train", "--out", run, "--resume")
    assert (status, weights(run)) == (0, learned), error
    # An ordinary adapter over the same base.
    load_model(run)


def test_a_start_that_changed_before_the_first_checkpoint_is_refused(
    old: Path, data: dict[str, str], tmp_path: Path
) -> None:
    start, run = shutil.copytree(old / "adapter", tmp_path / "start"), tmp_path / "run"
    settings = going_on(start, data)
    finetune(settings, run)
    learned = weights(run)
    for folder in ("adapter", "checkpoints"):
        shutil.rmtree(run / folder)
    finetune(settings, run, resume=True)
    assert weights(run) == learned
    for folder in ("adapter", "checkpoints"):
        shutil.rmtree(run / folder)
    shutil.rmtree(start)
    shutil.copytree(old / "checkpoints" / "step-000002" / "adapter", start)
    with pytest.raises(InputError, match=r"^The adapter at lora\.start changed since .* began"):
        finetune(settings, run, resume=True)


@pytest.mark.parametrize(
    "choice",
    [
        {"target_modules": ["c_attn", "mlp.c_proj"], "alpha_pattern": {"c_attn": 3}},
        {"target_modules": r".*\.c_(attn|fc)", "use_rslora": True},
        {"target_modules": ["c_proj"], "layers_to_transform": [1], "lora_dropout": 0.25},
        {"target_modules": "all-linear", "exclude_modules": ["c_fc"], "use_dora": True},
    ],
)
def test_an_adapter_of_peft_is_a_start(
    base: Callable[[str], Path], data: dict[str, str], tmp_path: Path, choice: dict[str, Any]
) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **choice)
    other = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base("gpt2")), config).eval()
    torch.manual_seed(2)
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    other.save_pretrained(tmp_path / "peft")
    settings = going_on(tmp_path / "peft", data, "model.dtype=float32")
    assert settings.model.source == str(base("gpt2"))
    assert (settings.lora.rank, settings.lora.alpha) == (3, 5)
    assert settings.prompt.template == DEFAULT_TEMPLATE
    ready = get_ready(settings)
    computes(ready, other)
    dropouts = {layer.dropout for layer in lora_layers(ready.runner.model).values()}
    assert dropouts == {config.lora_dropout}
    finetune(settings, tmp_path / "run")
    assert load_model(tmp_path / "run").info is not None


def test_what_is_given_with_a_start_wins_if_it_fits(old: Path, data: dict[str, str]) -> None:
    given = ("lora.dropout=0.5", "lora.target_modules=all-linear", "lora.rank=3")
    settings = going_on(old, data, *given, f"prompt.template={DEFAULT_TEMPLATE}")
    assert settings.prompt.template == DEFAULT_TEMPLATE
    model = get_ready(settings).runner.model
    assert {layer.dropout for layer in lora_layers(model).values()} == {0.5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lora.rank=4", "of rank 3 and alpha 5 in it and LoRA of rank 4 and alpha 5 in"),
        ("lora.alpha=6", "of rank 3 and alpha 5 in it and LoRA of rank 3 and alpha 6 in"),
        ("lora.dora=true", "is LoRA of rank 3 and alpha 5 in it and DoRA of"),
        ("lora.rank_stabilised=true", "alpha 5 (rank-stabilised) in the settings"),
        ("lora.activated=true", "alpha 5 in it and LoRA of rank 3 and alpha 5 activated by"),
        ("lora.target_modules=attention", "c_fc is LoRA of rank 3 and alpha 5 in it and not"),
        ("lora.initialisation=pissa", "start and initialisation=pissa exclude each other"),
        ("lora.start=nowhere", "There is no folder nowhere"),
    ],
)
def test_what_contradicts_a_start_is_refused_in_a_sentence(
    old: Path, data: dict[str, str], given: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        finetune(going_on(old, data, given), tmp_path / "run")
    assert words in str(refused.value)
    assert str(refused.value).count(". ") == 0
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_another_base_is_refused(old: Path, data: dict[str, str], tmp_path: Path) -> None:
    other = shutil.copytree(going_on(old, data).model.source, tmp_path / "other")
    moved = going_on(old, data, f"model.source={other}")
    get_ready(moved)
    model = tiny_model("gpt2")
    model.transformer.wte.weight.data.mul_(1.5)
    model.save_pretrained(other)
    with pytest.raises(InputError, match=r"other is not what it was when .*: weights changed"):
        get_ready(moved)

"""A real English model from a GGUF file: loaded, trained, resumed, scored, asked and exported."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.conftest import assert_near
from tools.smollm2 import SHA256
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraqa.adapter.info import read_adapter_info
from loraqa.answer.evaluate import evaluate
from loraqa.answer.export import export_adapter
from loraqa.answer.load import load_adapted
from loraqa.demo.world import test_passages as unseen_passages
from loraqa.demo.world import train_passages
from loraqa.finetuning import FinetuneResult, finetune
from loraqa.lora.settings import TENSORS
from loraqa.model.gguf import _reading_once
from loraqa.model.load import load_base
from loraqa.model.source import ModelSource, load_tokenizer, template_of
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.template import Template
from loraqa.reader import Reader
from loraqa.squad import Passage, QADataset, Question, write_official
from loraqa.train.settings import RunSettings, load_settings

TEXT = "Context: Café Olé — 東京, “1066” <|im_end|> Question: Who? Answer:"


@dataclass(frozen=True)
class Run:
    """A short training: its folder, settings and result."""

    folder: Path
    settings: RunSettings
    result: FinetuneResult


@pytest.fixture(scope="module")
def theirs(smollm2: Path) -> Any:
    """transformers' own model of the file, in float32."""
    # Three quarters of the time would go into parsing the same file again.
    with _reading_once():
        return AutoModelForCausalLM.from_pretrained(
            smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
        )


@pytest.fixture(scope="module")
def run(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Five steps on the embedded world, scored on texts about other names."""
    folder = tmp_path_factory.mktemp("real")
    write_official(folder / "train.json", train_passages(seed=0, count=30), "1.1")
    write_official(folder / "dev.json", unseen_passages(seed=1, count=3), "1.1")
    settings = load_settings(
        overrides=[
            f"model.source={smollm2}",
            f"data.train={folder / 'train.json'}",
            f"data.dev={folder / 'dev.json'}",
            "optimisation.max_steps=5",
            "optimisation.questions_per_step=16",
            "optimisation.learning_rate=1e-3",
            "checkpoint.every=3",
        ]
    )
    return Run(folder / "run", settings, finetune(settings, folder / "run"))


def test_model_and_tokenizer_are_those_that_transformers_reads(smollm2: Path, theirs: Any) -> None:
    model, tokenizer = load_base(smollm2, dtype="float32", device="cpu")
    expected = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ids = expected(TEXT)["input_ids"]
    assert tokenizer(TEXT)["input_ids"] == ids
    assert tokenizer.chat_template == expected.chat_template
    inputs = torch.tensor([ids])
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, theirs(inputs).logits)


def test_the_prompts_of_its_chat_are_those_of_transformers(smollm2: Path) -> None:
    tokenizer, _ = load_tokenizer(smollm2)
    encoder = PromptEncoder(tokenizer, Template(template_of("chat", smollm2)), 500, 20)
    asked = Passage("Café Olé.", (Question("q", "Who?"),))
    (tree,) = encoder.encode_prompts([asked], 10).trees
    content = "Text: Café Olé.\n\nAnswer this question with a few words of the text: Who?"
    expected = (
        ModelSource(smollm2)
        .tokenizer()
        .apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
    )
    assert [*tree.trunk, *tree.branches[0].prompt] == expected


def test_a_few_steps_teach_it_to_answer(run: Run) -> None:
    before, after = run.result.before, run.result.after
    assert before is not None
    assert after is not None
    assert before.f1 < 30
    assert after.f1 > before.f1 + 20


def test_the_adapter_names_the_file(run: Run, smollm2: Path) -> None:
    base = read_adapter_info(run.folder / "adapter").base
    assert (base.source, base.sha256) == (str(smollm2), SHA256)
    assert str(smollm2) in (run.folder / "adapter" / "adapter_config.json").read_text()
    assert f"base_model: {smollm2}" in (run.folder / "adapter" / "README.md").read_text()


def test_a_resumed_run_ends_with_the_same_bits(run: Run, tmp_path: Path) -> None:
    resumed = shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(resumed / "adapter")
    shutil.rmtree(max(resumed.glob("checkpoints/*")))
    assert len(list(resumed.glob("checkpoints/*"))) == 1
    finetune(run.settings, resumed, resume=True)
    results = [folder / "adapter" / TENSORS for folder in (run.folder, resumed)]
    assert results[0].read_bytes() == results[1].read_bytes()


def test_the_run_is_scored_and_asked_as_in_training(run: Run) -> None:
    reader = Reader.load(run.folder)
    dev = QADataset.from_passages(unseen_passages(seed=1, count=3), "1.1")
    evaluated = evaluate(reader, dev)
    assert run.result.after is not None
    # Batches differ, and so does rounding in bfloat16.
    assert evaluated.scores.f1 == pytest.approx(run.result.after.f1, abs=10)
    passage = dev.passages[0]
    for question in passage.questions[:2]:
        (answer,) = reader.answer(passage.context, [question.text], strategy="span")
        assert passage.context[answer.start : answer.end] == answer.text != ""


def test_peft_loads_the_exported_adapter(run: Run, theirs: Any, tmp_path: Path) -> None:
    export_adapter(run.folder, tmp_path / "exported")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "exported").eval()
    ours, tokenizer, _ = load_adapted(run.folder, dtype="float32", device="cpu")
    inputs = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = adapted(inputs).logits
        assert_near(ours(inputs).logits, expected, 1e-5)
        with adapted.disable_adapter():
            assert (adapted(inputs).logits - expected).abs().max() > 0.1

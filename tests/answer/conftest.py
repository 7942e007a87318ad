"""Fixtures for tests of answering: passages, prompts, a model, and a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_model

from loraqa.adapter.base import describe_base
from loraqa.adapter.info import AdapterInfo, write_adapter_info
from loraqa.answer.decode import Prompts, Rules, Written, split_no_answer
from loraqa.lora.adapt import adapt
from loraqa.lora.adapter import save_adapter
from loraqa.lora.layer import lora_layers
from loraqa.lora.settings import LoraSettings
from loraqa.model.load import load_base
from loraqa.model.runner import Runner
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad import Answer, Passage, QADataset, Question

PASSAGES = [
    Passage(
        "The old town lies on the river Aune. Its mill was built by Ruth Olen in 1203.",
        (
            Question("a1", "Who built the mill?", (Answer("Ruth Olen", 59),)),
            Question("a2", "When?", (Answer("1203", 72),)),
            Question("a3", "On which river does it lie?", (Answer("river Aune", 25),)),
        ),
    ),
    Passage("A king.", (Question("b1", "Who reigned here?", (Answer("king", 2),)),)),
    Passage(
        "Salt came from the hills, and the salt road is named after it.",
        (
            Question("c1", "What came?", (Answer("Salt", 0),)),
            Question("c2", "Where from?", (Answer("the hills", 15),)),
        ),
    ),
]

DATA = QADataset.from_passages(PASSAGES, "1.1")

RIGHT = {
    "a1": ["Ruth Olen"],
    "a2": ["1203"],
    "a3": ["river Aune"],
    "b1": ["king"],
    "c1": ["Salt"],
    "c2": ["the hills"],
}

LIMIT = 12


@dataclass(frozen=True)
class Scripted:
    """A strategy with a fixed list of answers to each question."""

    tokenizer: SegmentTokenizer
    answers: dict[str, Sequence[str]]
    draws: bool = True
    rows: int = 1
    name: str = "scripted"

    def write(self, prompts: Prompts) -> list[list[Written]]:
        return [
            [self._written(text) for text in self.answers[branch.question_id][: prompts.answers]]
            for _, branch, _ in prompts.rows()
        ]

    def _written(self, text: str) -> Written:
        tokens = self.tokenizer.encode([f" {text}"])[0].ids if text else []
        return Written((*tokens, self.tokenizer.eos), -1.0)


def stopping_model(kind: str, dtype: str = "float64") -> Any:
    """Make a tiny random model that sometimes ends its answers and has uneven probabilities."""
    model = tiny_model(kind, dtype)
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        model.lm_head.weight = torch.nn.Parameter(head * 3)
        model.lm_head.weight[0] *= 2
    return model


@pytest.fixture(scope="session")
def segments(tiny_tokenizer: Any) -> SegmentTokenizer:
    return SegmentTokenizer.from_transformers(tiny_tokenizer)


@pytest.fixture(scope="session")
def rules(segments: SegmentTokenizer) -> Rules:
    return Rules(segments, Template(), LIMIT)


@pytest.fixture(scope="session")
def trees(segments: SegmentTokenizer) -> list[Tree]:
    return PromptEncoder(segments, Template(), 250, 20).encode_prompts(PASSAGES, LIMIT).trees


@pytest.fixture(scope="module")
def adapted(tiny_folder: Path) -> Any:
    """A tiny model with an adapter that changes its logits."""
    model, _ = load_base(tiny_folder, dtype="float32", device="cpu")
    adapt(model, LoraSettings(rank=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.3)
    return model


@pytest.fixture
def info(tiny_folder: Path, adapted: Any, segments: SegmentTokenizer) -> AdapterInfo:
    return AdapterInfo(
        base=describe_base(tiny_folder, adapted, segments),
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


def prompts_of(
    runner: Runner, trees: Sequence[Tree], rules: Rules, answers: int = 1, seed: int = 0
) -> Prompts:
    """Return the prompts of the trees, with keys and values computed.

    Their logits are those of the model, as transformers' `generate` has them.
    """
    session, logits = runner.prefill(trees)
    contexts = [PASSAGES[tree.passage].context for tree in trees]
    _, no_answer = split_no_answer(logits, rules.tokenizer.eos)
    return Prompts(trees, contexts, session, logits, no_answer, rules, answers, seed)


def answers_only(prompts: Prompts) -> Prompts:
    """Return the prompts as a reader gives them to a strategy, without "no answer"."""
    logits, no_answer = split_no_answer(prompts.logits, prompts.rules.tokenizer.eos)
    return replace(prompts, logits=logits, no_answer=no_answer)


def generate(model: Any, prompts: Prompts, **options: Any) -> list[tuple[tuple[int, ...], float]]:
    """Return transformers' answer to each prompt alone: tokens and, with beams, the score."""
    return [first for first, *_ in generate_all(model, prompts, **options)]


def generate_all(
    model: Any, prompts: Prompts, **options: Any
) -> list[list[tuple[tuple[int, ...], float]]]:
    """Return transformers' answers to each prompt alone: tokens and, with beams, the score."""
    answers = []
    for tree, branch, _ in prompts.rows():
        ids = torch.tensor([[*tree.trunk, *branch.prompt]])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=prompts.rules.max_answer_tokens,
            do_sample=False,
            eos_token_id=sorted(prompts.rules.stops),
            pad_token_id=299,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        sequences = output.sequences[:, ids.shape[1] :].tolist()
        scores = output.get("sequences_scores", torch.zeros(len(sequences))).tolist()
        answers.append(
            [(_up_to_stop(row, prompts.rules), s) for row, s in zip(sequences, scores, strict=True)]
        )
    return answers


def _up_to_stop(row: list[int], rules: Rules) -> tuple[int, ...]:
    """Cut off the padding, which follows a token that ends the answer."""
    ends = (place + 1 for place, token in enumerate(row) if token in rules.stops)
    return tuple(row[: next(ends, len(row))])

"""Trees of random text for the model room."""

import socket
from typing import Any

import pytest
import torch
from torch import Tensor

from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.prompt.tree import Tree
from loraqa.squad.passage import Answer, Passage, Question

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
        (Question("c1", "What came?", (Answer("Salt", 0),)), Question("c2", "What of the moon?")),
    ),
]


@pytest.fixture
def encoder(tiny_tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(SegmentTokenizer.from_transformers(tiny_tokenizer), Template(), 250, 20)


@pytest.fixture
def trees(encoder: PromptEncoder) -> list[Tree]:
    return encoder.encode_training(PASSAGES).trees


@pytest.fixture
def prompts(encoder: PromptEncoder) -> list[Tree]:
    return encoder.encode_prompts(PASSAGES, 20).trees


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def padded_examples(trees: list[Tree]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and labels of separate examples, padded on the right."""
    rows = [([*t.trunk, *b.prompt, *b.answer], len(b.answer)) for t in trees for b in t.branches]
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
    labels = torch.full(input_ids.shape, -100)
    for row, (ids, answer) in enumerate(rows):
        labels[row, len(ids) - answer : len(ids)] = input_ids[row, len(ids) - answer : len(ids)]
    return input_ids, mask, labels

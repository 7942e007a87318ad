"""Steps of real trees, shared among ranks as `loraqa train` shares them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import AutoTokenizer

from benchmarks.base import MAX_LENGTH, STRIDE
from benchmarks.text import REAL, SHARED, TOKENIZER
from loraqa.demo.world import train_passages
from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.shares import shares
from loraqa.prompt.template import DEFAULT_TEMPLATE, Template
from loraqa.squad import Passage, read_passages

LIKE_SQUAD, ALL = "squad1-train.json", "squad1-train*.json"
"""Whole articles, with almost five questions a context; and all files, with three."""

_WORLD_PASSAGES = 1000


@dataclass(frozen=True)
class Size:
    """The size of a tree: its tokens and questions."""

    tokens: int
    questions: int


def training_sizes(files: str = LIKE_SQUAD) -> list[Size]:
    """Return the trees of real training data, or of the demo's world if there are none."""
    return sizes_in(_passages(files))


def sizes_in(passages: Sequence[Passage]) -> list[Size]:
    """Return the size of each tree of passages, with GPT-2's tokenizer if it is at hand."""
    tokenizer = SegmentTokenizer.from_transformers(AutoTokenizer.from_pretrained(TOKENIZER))
    encoder = PromptEncoder(tokenizer, Template(DEFAULT_TEMPLATE), MAX_LENGTH, STRIDE)
    trees = encoder.encode_training(passages).trees
    return [Size(len(tree), len(tree.branches)) for tree in trees]


def _passages(files: str) -> list[Passage]:
    if not REAL:
        return list(train_passages(seed=0, count=_WORLD_PASSAGES))
    paths = sorted((SHARED / "data").glob(files))
    return [passage for path in paths for passage in read_passages(path).passages]


def step_of(trees: Sequence[Size], questions: int, seed: int) -> list[Size]:
    """Return whole trees in random order until they hold so many questions.

    When all are taken, they are taken again in a new order: a step of many ranks has more questions
    than the data.
    """
    step, held, order = [], 0, _endless_order(len(trees), seed)
    while held < questions:
        tree = trees[next(order)]
        step.append(tree)
        held += tree.questions
    return step


def _endless_order(count: int, seed: int) -> Iterator[int]:
    chance = np.random.default_rng(seed)
    while True:
        yield from chance.permutation(count).tolist()


def tokens_of_ranks(step: Sequence[Size], ranks: int) -> list[int]:
    """Return the tokens of each rank that shares the step."""
    tokens = [tree.tokens for tree in step]
    return [sum(tokens[index] for index in own) for own in shares(tokens, ranks)]


def idle(tokens: Sequence[float]) -> float:
    """Return the share of their time that ranks wait for the one with the most tokens."""
    return 1 - sum(tokens) / len(tokens) / max(tokens)

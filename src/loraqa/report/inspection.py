"""Show the model's input: tokens and masks of some trees in colour, counts, and lengths."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.text import Text

from loraqa.model.trees import branch_mask
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.encode import Encoded, EncodingCounts
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.tree import TokenIds, Tree
from loraqa.report.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

TRUNK, QUESTION, SUPERVISED, NOTE = "cyan", "yellow", "bold green", "dim"
_BAR = 40
_BINS = 12
_CELLS = 32


def inspection(
    encoded: Encoded, tokenizer: SegmentTokenizer, examples: int
) -> Iterator["RenderableType"]:
    """Yield renderables for a `rich` console: `examples` trees, counts, and a length histogram."""
    yield _legend()
    for tree in encoded.trees[:examples]:
        yield from _tree(tree, tokenizer)
    yield counts_table(encoded.counts).to_rich()
    yield _histogram([tree.longest_path for tree in encoded.trees])


def counts_table(counts: EncodingCounts) -> Table:
    """Return the counts of an encoding as a table."""
    rows = (
        ("contexts", counts.passages),
        ("questions", counts.questions),
        ("trees", counts.trees),
        ("examples (a question in a window)", counts.examples),
        ("contexts too long for one window", counts.windowed),
        ("examples trained to say “no answer”, answer not in their window", counts.not_here),
        ("examples left out, answer not in their window", counts.left_out),
        ("questions skipped, answer in no window", len(counts.skipped)),
        ("tokens as trees", counts.tree_tokens),
        ("tokens as separate examples", counts.separate_tokens),
        (
            "tokens as separate examples / tokens as trees",
            round(counts.separate_tokens / max(counts.tree_tokens, 1), 2),
        ),
    )
    return Table("Encoded data", (Column("item"), Column("count", ",.10g")), rows)


def _legend() -> Text:
    return Text.assemble(
        ("trunk: the context, computed once", TRUNK),
        "   ",
        ("branch: a question", QUESTION),
        "   ",
        ("supervised: tokens in the loss", SUPERVISED),
    )


def _tree(tree: Tree, tokenizer: SegmentTokenizer) -> Iterator[Text]:
    start, end = tree.window
    yield Text(f"\npassage {tree.passage}, characters {start} to {end}", "bold")
    yield _tokens(tree.trunk, tokenizer, TRUNK)
    yield _places(tree.trunk, 0)
    for branch in tree.branches:
        yield Text(f"\n  {branch.question_id}", "bold")
        yield (
            Text("  ")
            + _tokens(branch.prompt, tokenizer, QUESTION)
            + Text("│", NOTE)
            + _tokens(branch.answer, tokenizer, SUPERVISED)
        )
        yield Text("  ") + _places([*branch.prompt, *branch.answer], len(tree.trunk))
    yield Text(
        f"\n  attention mask of {len(tree)} tokens: each row sees the marked columns", "bold"
    )
    yield from _mask(tree)


def _tokens(ids: TokenIds, tokenizer: SegmentTokenizer, style: str) -> Text:
    return Text("│", NOTE).join(Text(tokenizer.show(int(i)), style) for i in ids)


def _places(ids: TokenIds | Sequence[int], first: int) -> Text:
    listed = " ".join(str(int(i)) for i in ids)
    return Text(f"positions {first} to {first + len(ids) - 1}, ids {listed}", NOTE)


def _mask(tree: Tree) -> Iterator[Text]:
    """Yield the lines of the reduced mask; a cell is seen fully, partly or not at all."""
    (span,) = collate_trees([tree]).spans
    trunk = torch.ones(span.trunk, len(tree), dtype=torch.bool).tril()
    seen = torch.cat([trunk, branch_mask(span)])
    edges = np.linspace(0, len(tree), min(len(tree), _CELLS) + 1).astype(int)
    for top, bottom in pairwise(edges):
        parts = [seen[top:bottom, left:right] for left, right in pairwise(edges)]
        cells = ("██" if part.all() else "▒▒" if part.any() else "· " for part in parts)
        yield Text("  " + "".join(cells), TRUNK if bottom <= span.trunk else QUESTION)


def _histogram(lengths: Sequence[int]) -> Text:
    """Return a histogram of the trees' longest paths."""
    if not lengths:
        return Text("no trees")
    width = max(1, -(-(max(lengths) + 1) // _BINS))
    bins = [0] * (max(lengths) // width + 1)
    for length in lengths:
        bins[length // width] += 1
    lines = [
        f"{index * width:>6} to {(index + 1) * width - 1:<6} {count:>7,} "
        + "█" * -(-count * _BAR // max(bins))
        for index, count in enumerate(bins)
    ]
    return Text("\n".join(["Longest path of a tree, in tokens", *lines]))

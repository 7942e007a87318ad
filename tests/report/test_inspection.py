"""Inspection shows every token that goes into the model, and what is supervised."""

import re
from typing import Any

from rich.console import Console

from loraqa.prompt.encode import PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.report.inspection import SUPERVISED, counts_table, inspection
from loraqa.squad.passage import Answer, Passage, Question

PASSAGE = Passage(
    "The mill was built by Ruth Olen.",
    (Question("q1", "Who built the mill?", (Answer("Ruth Olen", 22),)),),
)


def test_all_tokens_ids_and_positions_are_shown(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer(tiny_tokenizer)
    encoded = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE])
    console = Console(width=4000)
    console.begin_capture()
    for piece in inspection(encoded, tokenizer, examples=1):
        console.print(piece)
    shown = console.end_capture()
    prompt = f"Context: {PASSAGE.context} Question: Who built the mill? Answer: Ruth Olen"
    places = re.compile(r"\npositions .*\n\n  q1\n  ")
    assert prompt + "<|endoftext|>" in places.sub("", shown).replace("│", "")
    (tree,) = encoded.trees
    (branch,) = tree.branches
    assert " ".join(map(str, tree.trunk)) in shown
    first, last = len(tree.trunk), len(tree.trunk) + len(branch.prompt) + len(branch.answer) - 1
    assert f"positions {first} to {last}, ids {' '.join(map(str, branch.prompt))}" in shown


def test_what_is_supervised_has_its_own_colour(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer(tiny_tokenizer)
    encoded = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE])
    answers = {
        span.style: str(piece)[span.start : span.end]
        for piece in inspection(encoded, tokenizer, examples=1)
        if hasattr(piece, "spans")
        for span in piece.spans
        if span.style == SUPERVISED
    }
    assert answers[SUPERVISED] == "<|endoftext|>"


def test_counts_are_the_encoders(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer(tiny_tokenizer)
    counts = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE] * 3).counts
    markdown = counts_table(counts).to_markdown()
    assert "| contexts | 3 |" in markdown
    assert f"| tokens as trees | {counts.tree_tokens:,} |" in markdown

"""Inspection shows every token of the model's input, and which tokens are supervised."""

import re
from typing import Any

from rich.console import Console

from loraqa.prompt.encode import Encoded, EncodingCounts, PromptEncoder
from loraqa.prompt.segments import SegmentTokenizer
from loraqa.prompt.template import Template
from loraqa.report.inspection import SUPERVISED, counts_table, inspection
from loraqa.squad.passage import Answer, Passage, Question

PASSAGE = Passage(
    "The mill was built by Ruth Olen.",
    (Question("q1", "Who built the mill?", (Answer("Ruth Olen", 22),)),),
)
PROMPT = f"Context: {PASSAGE.context} Question: Who built the mill? Answer: Ruth Olen"


def test_all_tokens_ids_and_positions_are_shown(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    encoded = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE])
    console = Console(width=4000)
    console.begin_capture()
    for piece in inspection(encoded, tokenizer, examples=1):
        console.print(piece)
    shown = console.end_capture()
    places = re.compile(r"\npositions .*\n\n  q1\n  ")
    assert PROMPT + "<|endoftext|>" in places.sub("", shown).replace("│", "")
    (tree,) = encoded.trees
    (branch,) = tree.branches
    assert " ".join(map(str, tree.trunk)) in shown
    first, last = len(tree.trunk), len(tree.trunk) + len(branch.prompt) + len(branch.answer) - 1
    assert f"positions {first} to {last}, ids {' '.join(map(str, branch.prompt))}" in shown


def test_the_mask_hides_sibling_branches(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    two = Passage("A b.", tuple(Question(name, "W?", (Answer("b", 2),)) for name in "pq"))
    encoded = PromptEncoder(tokenizer, Template("{context} Q{question} A{answer}"), 99, 20)
    (tree,) = encoded.encode_training([two]).trees
    lines = [str(piece) for piece in inspection(Encoded([tree], EncodingCounts()), tokenizer, 1)]
    mask = [line[2:] for line in lines if set(line) <= set(" █▒·")]
    sees = [[line[2 * i] == "█" for i in range(len(tree))] for line in mask]
    first = len(tree.trunk) + len(tree.branches[0])
    expected = [
        [j <= i and (j < len(tree.trunk) or (i < first) == (j < first)) for j in range(len(tree))]
        for i in range(len(tree))
    ]
    assert sees == expected


def test_supervised_tokens_have_their_own_colour(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    encoded = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE])
    answers = {
        span.style: str(piece)[span.start : span.end]
        for piece in inspection(encoded, tokenizer, examples=1)
        if hasattr(piece, "spans")
        for span in piece.spans
        if span.style == SUPERVISED
    }
    assert answers[SUPERVISED] == "<|endoftext|>"


def test_counts_are_those_of_the_prompts(tiny_tokenizer: Any) -> None:
    tokenizer = SegmentTokenizer.from_transformers(tiny_tokenizer)
    counts = PromptEncoder(tokenizer, Template(), 200, 20).encode_training([PASSAGE] * 30).counts
    markdown = counts_table(counts).to_markdown()
    tokens = len(tiny_tokenizer(PROMPT).input_ids)
    assert "| contexts | 30 |" in markdown
    assert f"| tokens as trees | {30 * tokens:,} |" in markdown

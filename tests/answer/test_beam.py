"""Beam search over trees writes what transformers' `generate` writes for each prompt alone."""

from typing import Any

import pytest
from tests.answer.conftest import generate, prompts_of, stopping_model

from loraqa.answer.beam import BeamSearch
from loraqa.answer.decode import Rules
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.prompt.tree import Tree


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -0.5, 2.0])
def test_equals_transformers(
    kind: str,
    path: Any,
    early_stopping: Any,
    length_penalty: float,
    trees: list[Tree],
    rules: Rules,
) -> None:
    search = BeamSearch(3, length_penalty, early_stopping)
    prompts = prompts_of(path(stopping_model(kind)), trees, rules)
    ours = [written for (written,) in search.write(prompts)]
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    theirs = generate(stopping_model(kind), prompts, num_beams=3, **options)
    assert [written.tokens for written in ours] == [tokens for tokens, _ in theirs]
    scores = [w.log_probability / len(w.tokens) ** length_penalty for w in ours]
    assert scores == pytest.approx([score for _, score in theirs], rel=1e-5)

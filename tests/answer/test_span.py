"""The span search finds what trying every span finds."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.answer.conftest import prompts_of, stopping_model

from loraqa.answer import span
from loraqa.answer.decode import Rules
from loraqa.answer.span import SpanSearch
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.prompt.tree import Tree


def every_span(context: str, rules: Rules) -> dict[str, list[int]]:
    """The tokens of each text that starts and ends at word boundaries and is not too long."""
    marks = [match.span() for match in re.finditer(r"\w+|[^\w\s]", context)]
    texts = {context[a:d] for i, (a, _) in enumerate(marks) for _, d in marks[i:]}
    encoded = {text: rules.tokenizer.encode([f" {text}"])[0].ids for text in sorted(texts)}
    return {text: ids for text, ids in encoded.items() if len(ids) < rules.max_answer_tokens}


def brute_force(model: Any, prompt: list[int], answers: dict[str, list[int]]) -> dict[str, float]:
    """The log-probability of each answer and eos after the prompt, each computed alone."""
    scores = {}
    for text, ids in answers.items():
        row = torch.tensor([[*prompt, *ids, 0]])
        with torch.no_grad():
            log_probs = model(row).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        scores[text] = float(log_probs.gather(1, row[0, len(prompt) :, None]).sum())
    return scores


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("no_answer", [False, True])
@pytest.mark.parametrize("rows", [1, 256])
def test_equals_brute_force(
    kind: str,
    path: Any,
    no_answer: bool,
    rows: int,
    trees: list[Tree],
    rules: Rules,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(span, "_ROWS", rows)
    rules = replace(rules, no_answer=no_answer)
    prompts = prompts_of(path(stopping_model(kind)), trees, rules)
    found = [written for (written,) in SpanSearch().write(prompts)]
    model = stopping_model(kind)
    for written, (tree, branch, context) in zip(found, prompts.rows(), strict=True):
        answers = every_span(context, rules) | ({"": []} if no_answer else {})
        scores = brute_force(model, [*tree.trunk, *branch.prompt], answers)
        best = max(scores, key=scores.__getitem__)
        assert written.log_probability == pytest.approx(scores[best], abs=1e-4)
        assert written.tokens == (*answers[best], 0)
        assert written.place == ((s := context.index(best), s + len(best)) if best else None)

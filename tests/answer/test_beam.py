"""Beam search over trees gives the answers of transformers' `generate` to each prompt alone."""

from typing import Any

import pytest
from tests.answer.conftest import generate, generate_all, prompts_of, stopping_model

from loraqa.answer.beam import BeamSearch
from loraqa.answer.decode import Greedy, Rules
from loraqa.model.runner import PaddedRunner, TreeRunner
from loraqa.prompt.tree import Tree


def check(search: BeamSearch, path: Any, kind: str, dtype: str, trees: Any, rules: Rules) -> None:
    prompts = prompts_of(path(stopping_model(kind, dtype)), trees, rules)
    ours = [written for (written,) in search.write(prompts)]
    theirs = generate(
        stopping_model(kind, dtype),
        prompts,
        num_beams=search.width,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping,
    )
    assert [written.tokens for written in ours] == [tokens for tokens, _ in theirs]
    scores = [w.log_probability / len(w.tokens) ** search.length_penalty for w in ours]
    assert scores == pytest.approx([score for _, score in theirs], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("width", [2, 5])
def test_answers_equal_transformers(
    kind: str, path: Any, dtype: str, width: int, trees: list[Tree], rules: Rules
) -> None:
    check(BeamSearch(width), path, kind, dtype, trees, rules)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, -0.5, 2.0])
def test_early_stopping_equals_transformers(
    kind: str, early_stopping: Any, length_penalty: float, trees: list[Tree], rules: Rules
) -> None:
    search = BeamSearch(3, length_penalty, early_stopping)
    check(search, TreeRunner, kind, "float64", trees, rules)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_best_answers_equal_transformers(
    kind: str, count: int, trees: list[Tree], rules: Rules
) -> None:
    prompts = prompts_of(TreeRunner(stopping_model(kind)), trees, rules, answers=count)
    ours = BeamSearch(5).write(prompts)
    best = min(count, 5)
    theirs = generate_all(stopping_model(kind), prompts, num_beams=5, num_return_sequences=best)
    assert [[w.tokens for w in answers] for answers in ours] == [
        [tokens for tokens, _ in answers] for answers in theirs
    ]


def test_one_beam_is_greedy(trees: list[Tree], rules: Rules) -> None:
    runner = TreeRunner(stopping_model("llama"))
    one = [written.tokens for (written,) in BeamSearch(1).write(prompts_of(runner, trees, rules))]
    greedy = [written.tokens for (written,) in Greedy().write(prompts_of(runner, trees, rules))]
    assert one == greedy

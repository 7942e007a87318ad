"""Decoding with kept keys and values gives the logits of computing everything again."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import assert_near, tiny_model

from loraqa.model.runner import PaddedRunner, RecomputingRunner, Runner, TreeRunner
from loraqa.prompt.tree import Tree

TOKEN = st.integers(1, 299)
# transformers keeps rotary tables in fp32, whatever the model's dtype.
TOLERANCE = {"float64": 1e-5, "float32": 1e-4}


def anew(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """The last logits of each row, computed alone."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in rows])


def rows_of(prompts: list[Tree]) -> list[list[int]]:
    return [[*tree.trunk, *branch.prompt] for tree in prompts for branch in tree.branches]


def runner_of(kind: str, path: type[Any]) -> Runner:
    runner: Runner = path(tiny_model(kind, "float64"))
    return runner


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner, RecomputingRunner])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_steps_equal_a_fresh_computation(
    kind: str, path: type[Any], dtype: str, prompts: list[Tree], data: st.DataObject
) -> None:
    model = tiny_model(kind, dtype)
    session, logits = path(model).prefill(prompts)
    rows = rows_of(prompts)
    steps = [(logits, rows)]
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
        session.select(torch.tensor(chosen))
        new = data.draw(st.lists(TOKEN, min_size=len(chosen), max_size=len(chosen)))
        rows = [[*rows[index], token] for index, token in zip(chosen, new, strict=True)]
        steps.append((session.advance(torch.tensor(new)), rows))
    for logits, expected in steps:
        assert_near(logits, anew(model, expected), TOLERANCE[dtype])


@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner, RecomputingRunner])
def test_both_go_their_own_way_after_branching_off(path: type[Any], prompts: list[Tree]) -> None:
    runner = runner_of("gpt2", path)
    session, _ = runner.prefill(prompts)
    rows = rows_of(prompts)
    session.advance(torch.arange(len(rows)))
    rows = [[*row, token] for token, row in enumerate(rows)]
    chosen = [2, 0, 2]
    other = session.fork(torch.tensor(chosen))
    others = [rows[index] for index in chosen]
    steps = []
    for token in (10, 11):
        steps.append(session.advance(torch.full((len(rows),), token)))
        steps.append(other.advance(torch.full((len(others),), 10 + token)))
    expected = [
        anew(runner.model, [[*row, *written] for row in its_rows])
        for its_rows, written in (
            (rows, [10]),
            (others, [20]),
            (rows, [10, 11]),
            (others, [20, 21]),
        )
    ]
    torch.testing.assert_close(steps, expected)


def test_one_branch_is_a_tree_too(prompts: list[Tree]) -> None:
    single = [Tree(prompts[0].trunk, prompts[0].branches[:1], 0, (0, 0))]
    runner = runner_of("gpt2", TreeRunner)
    _, logits = runner.prefill(single)
    torch.testing.assert_close(logits, anew(runner.model, rows_of(single)))


def test_greedy_answers_equal_transformers_generate(prompts: list[Tree]) -> None:
    runner = runner_of("gpt2", TreeRunner)
    session, logits = runner.prefill(prompts)
    written: list[np.ndarray] = []
    for _ in range(12):
        tokens = logits.argmax(dim=-1)
        written.append(tokens.numpy())
        logits = session.advance(tokens)
    runner.model.set_attn_implementation("sdpa")
    for ids, ours in zip(rows_of(prompts), np.stack(written, axis=1), strict=True):
        theirs = runner.model.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=299
        )[0, len(ids) :].tolist()
        assert list(ours[: len(theirs)]) == theirs

"""Greedy answers equal transformers'; samples follow transformers' distributions."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.answer.conftest import LIMIT, generate, prompts_of, stopping_model
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper

from loraqa.answer.decode import Greedy, Rules, Written
from loraqa.answer.strategies import parse_strategy
from loraqa.model.runner import PaddedRunner, Runner, TreeRunner
from loraqa.prompt.tree import Tree


def log_probability(model: Any, prompt: list[int], tokens: tuple[int, ...]) -> float:
    """Return ln p(tokens | prompt), computed in one forward pass."""
    row = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        log_probs = model(row).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
    return float(log_probs.gather(1, row[0, len(prompt) :, None]).sum())


def sample(runner: Runner, trees: list[Tree], rules: Rules, n: int, seed: int = 0) -> Any:
    strategy = parse_strategy("temperature:1.5+top-k:20")
    return strategy.write(prompts_of(runner, trees, rules, answers=n, seed=seed))


def tokens_of(answers: list[list[Written]]) -> list[list[tuple[int, ...]]]:
    return [[written.tokens for written in of_prompt] for of_prompt in answers]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_greedy_equals_transformers(
    kind: str, path: Any, dtype: str, trees: list[Tree], rules: Rules
) -> None:
    prompts = prompts_of(path(stopping_model(kind, dtype)), trees, rules)
    ours = [written.tokens for (written,) in Greedy().write(prompts)]
    assert ours == [tokens for tokens, _ in generate(stopping_model(kind, dtype), prompts)]


def test_answers_end_at_different_times(trees: list[Tree], rules: Rules) -> None:
    """The other tests rely on this: some answers end at different steps, and some do not end."""
    answers = Greedy().write(prompts_of(TreeRunner(stopping_model("gpt2")), trees, rules))
    lengths = {len(written.tokens) for (written,) in answers}
    assert len(lengths) > 2
    for (written,) in answers:
        assert (written.tokens[-1] in rules.stops) or len(written.tokens) == LIMIT
        assert rules.stops.isdisjoint(written.tokens[:-1])


def test_eos_and_line_breaks_end_an_answer(rules: Rules, tiny_tokenizer: Any) -> None:
    texts = {i: tiny_tokenizer.decode([i]) for i in range(len(tiny_tokenizer))}
    assert rules.stops == {i for i, text in texts.items() if "\n" in text or i == 0}


def test_an_answer_stops_at_a_line_break(trees: list[Tree], rules: Rules) -> None:
    newline = rules.tokenizer.encode(["\n"])[0].ids[0]
    model = stopping_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight[newline] = model.lm_head.weight[0]
        model.lm_head.weight[0] = 0
    answers = Greedy().write(prompts_of(TreeRunner(model), trees, rules))
    ended = [written for (written,) in answers if written.tokens[-1] == newline]
    assert ended
    assert all("\n" not in rules.text(written.tokens) for written in ended)


@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
def test_log_probability_is_the_models_own(path: Any, trees: list[Tree], rules: Rules) -> None:
    prompts = prompts_of(path(stopping_model("llama")), trees, rules, answers=3)
    answers = parse_strategy("temperature:2+top-p:0.8").write(prompts)
    for of_prompt, (tree, branch, _) in zip(answers, prompts.rows(), strict=True):
        for written in of_prompt:
            prompt = [*tree.trunk, *branch.prompt]
            expected = log_probability(stopping_model("llama"), prompt, written.tokens)
            assert written.log_probability == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_sampled_answers_have_the_distribution_of_transformers(
    trees: list[Tree], rules: Rules
) -> None:
    """Compare the counts of all pairs of tokens with the product of warped distributions."""
    tree = replace(trees[0], branches=trees[0].branches[:1])
    prompt = [*tree.trunk, *tree.branches[0].prompt]
    model = stopping_model("gpt2")
    warp = LogitsProcessorList([TemperatureLogitsWarper(6.0), TopKLogitsWarper(3)])

    def next_token(ids: list[int]) -> dict[int, float]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1].float()
        probabilities = warp(None, logits).softmax(dim=-1)[0]
        return {i: float(probabilities[i]) for i in probabilities.nonzero()[:, 0].tolist()}

    expected: dict[tuple[int, ...], float] = {}
    for first, p in next_token(prompt).items():
        if first in rules.stops:
            expected[first,] = p
            continue
        for second, q in next_token([*prompt, first]).items():
            expected[first, second] = p * q

    draws = 5_000
    prompts = prompts_of(
        TreeRunner(stopping_model("gpt2")), [tree], replace(rules, max_answer_tokens=2), draws
    )
    (answers,) = parse_strategy("temperature:6+top-k:3").write(prompts)
    counts = Counter(written.tokens for written in answers)
    assert counts.keys() <= expected.keys()
    chi_square = sum((counts[t] - draws * p) ** 2 / (draws * p) for t, p in expected.items())
    # The 99.9th percentile of chi-square with 8 degrees of freedom.
    assert len(expected) == 9
    assert chi_square < 26.12


@pytest.mark.parametrize("path", [TreeRunner, PaddedRunner])
def test_samples_do_not_depend_on_their_batch(path: Any, trees: list[Tree], rules: Rules) -> None:
    runner = path(stopping_model("llama"))
    together = tokens_of(sample(runner, trees, rules, 4))
    assert len({answer for of_prompt in together for answer in of_prompt}) > 12
    alone = [
        replace(tree, branches=(branch,)) for tree in reversed(trees) for branch in tree.branches
    ]
    apart = {
        tree.branches[0].question_id: tokens_of(sample(runner, [tree], rules, 2))[0]
        for tree in alone
    }
    ids = [branch.question_id for tree in trees for branch in tree.branches]
    assert {i: answers[:2] for i, answers in zip(ids, together, strict=True)} == apart


def test_samples_depend_on_seed_question_and_number(trees: list[Tree], rules: Rules) -> None:
    runner = TreeRunner(stopping_model("llama"))
    first = tokens_of(sample(runner, trees, rules, 3))
    assert tokens_of(sample(runner, trees, rules, 3)) == first
    assert tokens_of(sample(runner, trees, rules, 3, seed=1)) != first
    assert all(len(set(answers)) > 1 for answers in first)
    branch = trees[0].branches[0]
    twins = replace(trees[0], branches=(branch, replace(branch, question_id="other")))
    one, other = tokens_of(sample(runner, [twins], rules, 3))
    assert one != other


def test_prompts_are_computed_once_for_all_samples(trees: list[Tree], rules: Rules) -> None:
    runner = TreeRunner(stopping_model("gpt2"))
    widths = []
    runner.model.register_forward_pre_hook(
        lambda _module, _args, options: widths.append(options["input_ids"].shape[1]),
        with_kwargs=True,
    )
    sample(runner, trees, rules, 5)
    rows = 5 * sum(len(tree.branches) for tree in trees)
    assert widths[0] == sum(map(len, trees))
    assert widths[1] <= rows
    # Finished answers leave the batch.
    assert widths[1:] == sorted(widths[1:], reverse=True)
    assert widths[-1] < widths[1]

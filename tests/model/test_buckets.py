"""Padding to few lengths is small, and changes nothing that is computed."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from torch.nn.functional import cross_entropy

from loraqa.model.buckets import bucket, fill_bucket, padded_row
from loraqa.model.runner import BucketRunner, Runner, TreeRunner
from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree

SMALLEST = st.sampled_from([1, 128, 512])


@given(count=st.integers(1, 1_000_000), smallest=SMALLEST)
def test_padding_is_less_than_an_eighth_or_than_the_smallest_bucket(
    count: int, smallest: int
) -> None:
    assert 0 <= bucket(count, smallest) - count < max(smallest, count / 8)


@given(count=st.integers(1, 3000), smallest=SMALLEST)
def test_buckets_are_few_and_of_whole_steps(count: int, smallest: int) -> None:
    buckets = {bucket(each, smallest) for each in range(count, 2 * count)}
    assert len(buckets) <= 9
    assert all(each % smallest == 0 and bucket(each, smallest) == each for each in buckets)


def test_the_last_token_is_padding_and_pads_the_supervised(trees: list[Tree]) -> None:
    batch = collate_trees(trees)
    filled = fill_bucket(batch)
    tokens, wanted = batch.input_ids.shape[1], len(batch.supervised)
    assert filled.input_ids.shape == filled.position_ids.shape == (1, padded_row(tokens))
    assert torch.equal(filled.input_ids[:, :tokens], batch.input_ids)
    assert torch.equal(filled.position_ids[:, :tokens], batch.position_ids)
    assert torch.equal(filled.supervised[:wanted], batch.supervised)
    assert set(filled.supervised[wanted:].tolist()) == {padded_row(tokens) - 1}
    assert torch.equal(filled.targets, batch.targets)


@pytest.mark.parametrize("tokens", [1, 511, 512, 4096, 9000])
def test_a_full_row_gets_padding_too(tokens: int) -> None:
    assert padded_row(tokens) > tokens


def logits_and_gradients(runner: Runner, trees: Sequence[Tree]) -> list[torch.Tensor]:
    logits, targets = runner.answer_logits(trees)
    weights = list(runner.model.parameters())
    return [logits, *torch.autograd.grad(cross_entropy(logits, targets), weights)]


@pytest.mark.usefixtures("flex_gradients")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_logits_and_gradients_are_those_without_padding(kind: str, trees: list[Tree]) -> None:
    model = tiny_model(kind, "float64")
    expected = logits_and_gradients(TreeRunner(model), trees)
    torch.testing.assert_close(logits_and_gradients(BucketRunner(model), trees), expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_size_is_what_is_computed(trees: list[Tree]) -> None:
    model = tiny_model("gpt2")
    computed: list[int] = []
    model.transformer.wte.register_forward_hook(lambda _, ids, __: computed.append(ids[0].numel()))
    runner = BucketRunner(model)
    runner.answer_logits(trees)
    assert computed == [runner.size(trees)]

"""Padding to few lengths is small, and changes nothing that is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree
from loraqa.speed.gpu.padding import bucket, fill_bucket, padded_row

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

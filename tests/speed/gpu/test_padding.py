"""Padding to a few lengths is small, and changes nothing that is computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraqa.prompt.batch import collate_trees
from loraqa.prompt.tree import Tree
from loraqa.speed.gpu.padding import pad_batch, padded_length, round_up

SMALLEST = st.sampled_from([1, 128, 512])


@given(count=st.integers(1, 1_000_000), smallest=SMALLEST)
def test_padding_is_less_than_an_eighth_or_than_the_smallest_step(
    count: int, smallest: int
) -> None:
    assert 0 <= round_up(count, smallest) - count < max(smallest, count / 8)


@given(count=st.integers(1, 3000), smallest=SMALLEST)
def test_lengths_are_few_and_of_whole_steps(count: int, smallest: int) -> None:
    lengths = {round_up(each, smallest) for each in range(count, 2 * count)}
    assert len(lengths) <= 9
    assert all(each % smallest == 0 and round_up(each, smallest) == each for each in lengths)


def test_the_last_token_is_padding_and_pads_the_supervised_places(trees: list[Tree]) -> None:
    batch = collate_trees(trees)
    padded = pad_batch(batch)
    tokens, supervised = batch.input_ids.shape[1], len(batch.supervised)
    length = padded_length(tokens)
    assert padded.input_ids.shape == padded.position_ids.shape == (1, length)
    assert torch.equal(padded.input_ids[:, :tokens], batch.input_ids)
    assert torch.equal(padded.position_ids[:, :tokens], batch.position_ids)
    assert torch.equal(padded.supervised[:supervised], batch.supervised)
    assert set(padded.supervised[supervised:].tolist()) == {length - 1}
    assert torch.equal(padded.targets, batch.targets)


@pytest.mark.parametrize("tokens", [1, 511, 512, 4096, 9000])
def test_a_full_sequence_is_padded_too(tokens: int) -> None:
    assert padded_length(tokens) > tokens

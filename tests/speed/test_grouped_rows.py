"""Grouped rows compute what plain rows compute, and pad little."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from tests.speed.cpu.test_rows import (
    check_that_they_attend_as_plain_rows,
    check_that_they_go_their_own_way,
)

from loraqa.model.rows import PaddedRowAttention
from loraqa.model.runner import TreeRunner
from loraqa.prompt.batch import TreeSpan
from loraqa.speed import grouped_rows
from loraqa.speed.grouped_rows import GroupedRowAttention


@given(data=st.data())
def test_they_attend_as_plain_rows(data: st.DataObject) -> None:
    check_that_they_attend_as_plain_rows(GroupedRowAttention, data)


def test_they_go_their_own_way_after_branching_off() -> None:
    check_that_they_go_their_own_way(GroupedRowAttention)


def grouped(*spans: TreeSpan) -> GroupedRowAttention:
    return GroupedRowAttention(spans, {0: (torch.zeros(1, spans[-1].end, 4),) * 2})


def test_trunks_of_similar_length_lie_together() -> None:
    rows = grouped(TreeSpan(0, 30, (2,)), TreeSpan(32, 5, (1, 1)), TreeSpan(39, 6, (3,)))
    assert [len(trunks.states[0][0]) for trunks in rows._trunks] == [2, 1]


def test_a_trunk_goes_with_its_last_row() -> None:
    rows = grouped(TreeSpan(0, 5, (2,)), TreeSpan(7, 5, (1, 1)))
    (trunks,) = rows.select(torch.tensor([2]))._trunks
    assert len(trunks.states[0][0]) == 1


@pytest.mark.parametrize(
    ("make_row_attention", "applies"), [(PaddedRowAttention, True), (GroupedRowAttention, False)]
)
def test_they_replace_plain_rows_alone(make_row_attention: Any, applies: bool) -> None:
    runner = TreeRunner(tiny_model("gpt2"), make_row_attention=make_row_attention)
    assert grouped_rows.applies(runner, frozenset(["answering"])) == applies
    assert not grouped_rows.applies(runner, frozenset(["training"]))

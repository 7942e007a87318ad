"""Rows of different lengths attend as plain rows do; here the kernel is computed by hand."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import tiny_model
from tests.speed.cpu.test_rows import (
    check_that_they_attend_as_plain_rows,
    check_that_they_go_their_own_way,
)
from tests.speed.gpu import flash_by_hand

from loraqa.model.runner import TreeRunner
from loraqa.speed.gpu import rows as varlen_rows
from loraqa.speed.gpu.rows import VarlenRowAttention
from loraqa.speed.trial import UnusableError


@pytest.fixture(autouse=True, scope="module")
def by_hand() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_rows, "attend_segments", flash_by_hand.attend_segments)
        yield


@given(data=st.data())
def test_they_attend_as_plain_rows(data: st.DataObject) -> None:
    check_that_they_attend_as_plain_rows(VarlenRowAttention, data)


def test_they_go_their_own_way_after_branching_off() -> None:
    check_that_they_go_their_own_way(VarlenRowAttention)


def test_a_kernel_is_compared_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TreeRunner(tiny_model("gpt2"))
    assert varlen_rows.wrap(runner).make_row_attention is VarlenRowAttention
    monkeypatch.setattr(varlen_rows, "merge", lambda one, *_: one)
    with pytest.raises(
        UnusableError,
        match=r"^its sums of attention differ from the plain ones \(relative error .*\)$",
    ):
        varlen_rows.wrap(runner)


def test_they_are_not_for_a_cpu() -> None:
    runner = TreeRunner(tiny_model("gpt2", "bfloat16"))
    assert not varlen_rows.applies(runner, frozenset(["answering"]))

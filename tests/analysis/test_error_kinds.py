"""The kind of an error follows from golds, answer and place."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.analysis.examples import CONTEXT, asked, outcome, some_questions

from loraqa.analysis.error_kinds import KINDS, RIGHT, entity_of, kind_of
from loraqa.analysis.examined import counts_of_kinds, examine

TWICE = "Ann met Bob. Later Ann left. Bob Miller stayed."


@pytest.mark.parametrize(
    ("golds", "answer", "kind"),
    [
        (["Ruth Olen"], "Ruth Olen", "right"),
        (["Ruth Olen"], "the Ruth Olen!", "right"),
        ([], "", "right"),
        ([], "Ruth Olen", "answered wrongly"),
        (["Ruth Olen"], "", "abstained wrongly"),
        (["Ruth Olen"], "Ruth Smith", "not in the context"),
        (["Ruth Olen"], "by Ruth Olen in 1203", "boundary off"),
        (["Ruth Olen"], "Olen", "boundary off"),
        (["Ruth Olen"], "Olen in 1203", "boundary off"),
        (["nowhere", "1203"], "in 1203", "boundary off"),
        (["Ruth Olen"], "The mill", "other place in the same sentence"),
        (["1203"], "Ruth Olen", "other place in the same sentence"),
        (["Ruth Olen"], "John Smith", "another entity of the same kind"),
        (["1203"], "May 1250", "another entity of the same kind"),
        (["Ruth Olen"], "May 1250", "elsewhere in the context"),
        (["1203"], "Two hundred", "elsewhere in the context"),
        (["Ruth Olen"], "people live", "elsewhere in the context"),
        # The gold has no place: only its words can be compared.
        (["the Olen family"], "Olen", "boundary off"),
        (["the Olen family"], "cold", "elsewhere in the context"),
    ],
)
def test_kind_of_an_answer(golds: Sequence[str], answer: str, kind: str) -> None:
    assert kind_of(CONTEXT, asked("Which?", golds, answer)) == kind


def test_a_piece_of_the_gold_elsewhere_is_its_boundary() -> None:
    question = asked("Who stayed?", ["Bob Miller"], "Bob", TWICE, place=TWICE.index("Bob"))
    assert kind_of(TWICE, question) == "boundary off"


def test_punctuation_alone_overlaps_no_words() -> None:
    question = asked("Who built it?", ["Ruth Olen"], ".", place=CONTEXT.rindex("."))
    assert kind_of(CONTEXT, question) == "elsewhere in the context"


@given(st.lists(st.text("aB1. ", min_size=1, max_size=6), max_size=3), st.text("aB1. ", max_size=6))
def test_every_answer_has_one_kind(golds: list[str], answer: str) -> None:
    question = asked("Which?", golds, answer, "aB 1. Ba a1. B aB")
    kind = kind_of("aB 1. Ba a1. B aB", question)
    assert kind in KINDS
    assert (kind == RIGHT) == (question.exact_match == 1)


def test_kinds_are_counted() -> None:
    counts = counts_of_kinds(examine(outcome(some_questions())))
    assert sum(counts.values()) == 4
    assert {kind: count for kind, count in counts.items() if count} == {
        "right": 2,
        "another entity of the same kind": 1,
        "other place in the same sentence": 1,
    }


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("May 1250", "date"),
        ("the 1990s", "date"),
        ("on Monday", "date"),
        ("3 May", "date"),
        ("1066", "date"),
        ("30,000", "number"),
        ("two hundred", "number"),
        ("Super Bowl 50", "number"),
        ("Ruth Olen", "name"),
        ("the University of Oslo", "name"),
        ("United Nations", "name"),
        ("the cold river", None),
        ("someone", None),
        ("the", None),
        ("", None),
        ("…", None),
    ],
)
def test_entity_of_a_text(text: str, entity: str | None) -> None:
    assert entity_of(text) == entity

"""Every question is in one slice of each dimension; a slice has the scores of its questions."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.analysis.examples import CONTEXT, asked, outcome, some_questions

from loraqa.analysis.examined import examine
from loraqa.analysis.outcome import Asked
from loraqa.analysis.scores import slices
from loraqa.analysis.slices import DIMENSIONS, labels_of

WORDS = st.sampled_from("who many how what Aune mill river 1203 the is".split())
TEXTS = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


def label(dimension: str, question: Asked, context: str = CONTEXT) -> str:
    return labels_of(context, question)[dimension]


@given(TEXTS, st.lists(TEXTS, max_size=3), TEXTS)
def test_labels_are_those_that_the_dimension_names(
    question: str, golds: list[str], context: str
) -> None:
    found = labels_of(context, asked(question, golds, "mill", context))
    for dimension in DIMENSIONS:
        assert found[dimension.name] in dimension.labels


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("Who built the mill?", "who"),
        ("By whom was it built?", "who"),
        ("In which year was it built?", "which"),
        ("How many people live there?", "how many"),
        ("HOW MUCH is it?", "how much"),
        ("How old is it?", "how"),
        ("Name the river.", "other"),
        ("Whatever is showy?", "other"),
    ],
)
def test_question_word(question: str, word: str) -> None:
    assert label("question word", asked(question, [], "")) == word


@pytest.mark.parametrize(
    ("golds", "length"),
    [
        (["in the year 1203", "1203"], "1 word"),
        (["Ruth Olen"], "2 words"),
        (["by Ruth Olen"], "3 to 4 words"),
        (["two hundred and twenty-two people and their many dogs"], "more than 8 words"),
        ([], "no answer"),
    ],
)
def test_answer_length_is_that_of_the_shortest_gold(golds: list[str], length: str) -> None:
    assert label("answer length", asked("Who?", golds, "")) == length


@pytest.mark.parametrize(
    ("golds", "position"),
    [
        (["The mill"], "first quarter"),
        (["John Smith"], "second quarter"),
        (["Two hundred"], "third quarter"),
        (["cold"], "last quarter"),
        (["somewhere"], "no place"),
        ([], "no answer"),
    ],
)
def test_position(golds: list[str], position: str) -> None:
    assert label("position of the answer", asked("Who?", golds, "")) == position


@pytest.mark.parametrize(
    ("words", "length"),
    [(50, "up to 50 words"), (51, "51 to 100 words"), (1001, "more than 1,000 words")],
)
def test_context_length(words: int, length: str) -> None:
    context = "mill " * words
    assert label("context length", asked("Who?", [], "", context), context) == length


def test_golds_that_read_the_same_are_one() -> None:
    same = asked("Who?", ["Ruth Olen", "ruth olen", "the Ruth Olen."], "")
    assert label("different golds", same) == "1 gold"
    different = asked("Who?", ["Ruth Olen", "Olen", "Ruth", "Smith"], "")
    assert label("different golds", different) == "more than 3 golds"


@pytest.mark.parametrize(
    ("question", "share"),
    [
        ("Who built the mill?", "75% or more"),
        ("Who built the old mill there?", "50% to 75%"),
        ("Who built the great castle?", "25% to 50%"),
        ("Who made it?", "less than 25%"),
        ("Who was it?", "less than 25%"),
    ],
)
def test_words_shared_with_the_sentence_of_the_gold(question: str, share: str) -> None:
    name = "words shared by question and sentence"
    assert label(name, asked(question, ["Ruth Olen"], "")) == share


def test_without_a_gold_the_sentence_that_shares_most_counts() -> None:
    name = "words shared by question and sentence"
    assert label(name, asked("Is the river Aune cold?", [], "")) == "75% or more"


def test_scores_of_slices_are_those_of_their_questions() -> None:
    contexts = [CONTEXT, f"{CONTEXT} Again."]
    questions = [
        *some_questions(),
        asked("Who built it?", ["Ruth Olen"], "John", contexts[1], id="e", number=1),
        asked("Who died?", ["John Smith"], "John", contexts[1], id="f", number=1),
    ]
    found = slices(examine(outcome(questions, contexts)))
    totals = Counter[str]()
    for each in found:
        totals[each.dimension] += each.questions
    assert totals == {dimension.name: len(questions) for dimension in DIMENSIONS}

    (who,) = [each for each in found if each.label == "who"]
    assert (who.questions, who.contexts) == (3, 2)
    assert who.exact_match.mean == pytest.approx(100 / 3)
    assert who.f1.mean == pytest.approx(100 * (1 + 0 + 2 / 3) / 3)
    # Drawn twice, the second context has no exact match, the first one only matches.
    assert (who.exact_match.low, who.exact_match.high) == (0, 100)

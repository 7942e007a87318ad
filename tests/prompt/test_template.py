"""Templates split a prompt into segments; joined, the segments are the prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraqa.errors import InputError
from loraqa.prompt.template import DEFAULT_TEMPLATE, TWICE, Template

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1)


@given(WORDS, WORDS, WORDS)
def test_segments_join_to_the_prompt(context: str, question: str, answer: str) -> None:
    template = Template()
    joined = template.context(context) + template.question(question) + template.answer(answer)
    assert joined == f"Context: {context} Question: {question} Answer: {answer}"


def test_no_segment_ends_in_a_space() -> None:
    template = Template("{context}\n\nQ: {question}\nA:  {answer}")
    segments = template.context("c  "), template.question(" q "), template.answer("a ")
    assert segments == ("c", "\n\nQ: q\nA:", "  a")


def test_a_line_break_before_the_answer_belongs_to_the_question() -> None:
    template = Template("{context}\n{question}\nA:\n\n {answer}")
    assert template.question("Who?") == "\nWho?\nA:\n\n"
    assert template.answer("he") == " he"


def test_an_answer_is_one_line() -> None:
    assert Template().answer("a \r\n\n b\tc") == " a b\tc"


def test_an_empty_answer_is_an_empty_segment() -> None:
    assert Template().answer("  ") == ""


@pytest.mark.parametrize(
    "text",
    [
        "Context: {context} Question: {question}",
        "Question: {question} Context: {context} Answer: {answer}",
        DEFAULT_TEMPLATE + " {answer}",
        DEFAULT_TEMPLATE + ".",
        "{context} {question} {answer}",
        "{context} {passage} {question} A: {answer}",
        "{context} {context} {context} {question} A: {answer}",
        "Context: {context}\n{context} {question} A: {answer}",
    ],
)
def test_a_template_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="template"):
        Template(text)


def test_a_name_stands_for_a_template() -> None:
    assert Template("twice") == Template(TWICE)
    assert Template("twice").text.format(context="c", question="q", answer="a") == (
        "Context: c\nContext: c Question: q Answer: a"
    )

"""Find the places of answers in a context."""

from unittest.mock import patch

import pytest

from loraqa.squad import Answer, lookalikes, read_passages


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("60,000 people, 60 days", "60"),
        ("1.5 to 5 days", "5"),
        ("a fee of 0.60 for 60 days, 60.5 in all", "60"),
    ],
)
def test_a_part_of_a_longer_number_is_no_other_place(context: str, answer: str) -> None:
    data = read_passages([{"context": context, "question": "How long?", "answer": answer}])
    assert not data.unplaced
    assert data.questions[0].answers == (Answer(answer, context.index(f"{answer} days")),)


def test_parts_of_a_character_do_not_hide_a_look_alike() -> None:
    context = "½ cup, ½ spoon, ２ eggs"
    data = read_passages([{"context": context, "question": "How many?", "answer": "2"}])
    assert data.questions[0].answers == (Answer("２", context.index("２")),)


def test_a_context_is_searched_through_once_for_all_repeated_answers() -> None:
    context = "The mill by the river, the other mill by the other river, and a bridge, a bridge."
    answers = ("mill", "river", "bridge", "a bridge")
    data = read_passages(
        [{"context": context, "question": f"{text}?", "answer": text} for text in answers]
    )
    searched = lookalikes.Occurrences
    with patch.object(lookalikes, "Occurrences", side_effect=searched) as made:
        learned = data.to_learn_from("skip")
    assert [q.answers[0].start for q in learned.questions] == [4, 16, 64, 62]
    assert made.call_count == 1

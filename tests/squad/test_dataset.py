"""A data set made of passages, and a part of one."""

from dataclasses import replace

from loraqa.squad import Answer, Passage, QADataset, Question


def passage(context: str, *ids: str) -> Passage:
    return Passage(context, tuple(Question(id, "Which?", (Answer(context, 0),)) for id in ids))


ONE, TWO = passage("one", "a", "c"), passage("two", "b", "d")


def test_questions_of_passages_are_in_their_order() -> None:
    data = QADataset.from_passages(iter([ONE, TWO]), "2.0", "here")
    assert (data.source, data.version, data.passages) == ("here", "2.0", (ONE, TWO))
    assert data.order == ("a", "c", "b", "d")
    assert data.questions_in_order == data.questions


def test_questions_come_in_the_order_of_the_source() -> None:
    data = replace(QADataset.from_passages([ONE, TWO], "1.1"), order=("d", "c", "b", "a"))
    assert "".join(question.id for question in data.questions) == "acbd"
    assert "".join(question.id for question in data.questions_in_order) == "dcba"


def test_a_part_keeps_everything_but_the_other_questions() -> None:
    data = QADataset("here", "2.0", (ONE, TWO), ("d", "c", "b", "a"), 3, {"answers": 1})
    part = data.with_passages([TWO, replace(ONE, questions=ONE.questions[:1])])
    assert [question.id for question in part.questions] == ["b", "d", "a"]
    assert part.order == ("d", "b", "a")
    assert part == replace(data, passages=part.passages, order=part.order)
    assert part.fingerprint != data.fingerprint

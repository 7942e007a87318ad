"""Every gold counts in scores; only placed answers are learnt from."""

import json
import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from loraqa.errors import InputError
from loraqa.squad import Answer, QADataset, Question, read_passages, score, write_official
from loraqa.squad.lookalikes import Occurrences

CONTEXT = "The dam of Ose was opened in 1931 by Nora Lind."
ROWS = [
    {"id": "a", "question": "When?", "answers": ["in the year 1931", "1931"]},
    {"id": "b", "question": "Who?", "answers": ["Lady Lind"]},
    {"id": "c", "question": "Where?", "answers": ["Ose"]},
]


def dam() -> QADataset:
    return read_passages([row | {"context": CONTEXT} for row in ROWS])


def test_golds_outside_the_context_count_in_scores_and_not_in_training() -> None:
    data = dam()
    scores = score({"a": "in the year 1931", "b": "Lady Lind", "c": "Ose"}, data)
    assert (scores.exact_match, scores.f1, scores.total) == (100.0, 100.0, 3)
    assert data.questions[0].answers == (Answer("1931", 29),)
    assert [problem.place.id for problem in data.unplaced] == ["a", "b"]
    assert all(question.answerable for question in data.questions)


def test_a_question_without_a_placed_answer_is_a_problem_of_training_alone() -> None:
    data = dam()
    with pytest.raises(InputError, match=r"1 problem:\n.*id 'b': the answer 'Lady Lind' is not in"):
        data.to_learn_from("stop")
    kept = data.to_learn_from("skip")
    assert kept.order == ("a", "c")
    assert kept.skipped == {"questions": 1}
    assert len(kept.unplaced) == 1


@pytest.mark.parametrize(
    ("answer", "similar"),
    [
        ("behaviour of the bees", "behavior of the bees"),
        ("Dr Sanders", "Dr. Sanders"),
        ("No", ""),
        ("wings", ""),
    ],
)
def test_an_answer_that_is_no_quotation_is_told_with_the_nearest_passage(
    answer: str, similar: str
) -> None:
    context = "In 1931 (when it rained) the behavior of the bees changed, as Dr. Sanders noted."
    data = read_passages([{"id": "a", "context": context, "question": "?", "answer": answer}])
    hint = f"; the nearest passage is {similar!r}" if similar else ""
    with pytest.raises(InputError) as caught:
        data.to_learn_from("stop")
    assert str(caught.value) == (
        "the table has 1 problem:\n"
        f"  the table: row 0, answer, id 'a': the answer {answer!r} is not in the context{hint}\n"
        "An answer must be a quotation of its context. Correct them, or leave them out with "
        "--on-bad skip."
    )


def test_official_json_keeps_every_gold(tmp_path: Path) -> None:
    data = dam()
    write_official(tmp_path / "data.json", data.passages, data.version)
    again = read_passages(tmp_path / "data.json")
    assert again.passages == data.passages
    assert again.fingerprint == data.fingerprint


def test_golds_change_the_fingerprint() -> None:
    def fingerprint(*golds: str) -> str:
        rows = [{"id": "a", "context": CONTEXT, "question": "When?", "answers": ["1931", *golds]}]
        return read_passages(rows).fingerprint

    assert len({fingerprint(), fingerprint("year 1931"), fingerprint("year 31")}) == 3


def test_golds_are_those_of_the_answers_by_default() -> None:
    assert Question("q", "?", (Answer("Ose", 11),)).golds == ("Ose",)


def official_em(prediction: str, golds: list[str], v2: bool) -> tuple[float, float]:
    """The official algorithm, written plainly."""

    def normal(text: str) -> str:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(gold: str) -> float:
        mine, right = normal(prediction).split(), normal(gold).split()
        common = sum((Counter(mine) & Counter(right)).values())
        if v2 and (not mine or not right):
            return float(mine == right)
        return 2 * common / (len(mine) + len(right)) if common else 0.0

    if v2:
        golds = [gold for gold in golds if normal(gold)] or [""]
    return max(float(normal(prediction) == normal(g)) for g in golds), max(map(f1, golds))


def test_scores_equal_the_plain_algorithm_on_random_golds() -> None:
    rng = random.Random(5)
    words = ["the", "Dam", "of", "Ose", "1931", "Nora", "a", "x-y", "!"]

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 4)))

    for v2 in (False, True):
        rows = [
            {"id": str(n), "context": CONTEXT, "question": "?", "answers": [text(), text()]}
            for n in range(200)
        ]
        if v2:
            rows.append({"id": "n", "context": CONTEXT, "question": "?", "answers": []})
        predictions = {str(row["id"]): text() for row in rows}
        scores = score(predictions, read_passages(rows))
        for row in rows:
            mine = scores.by_question[str(row["id"])]
            expected = official_em(predictions[str(row["id"])], list(row["answers"]), v2)
            assert (mine.exact_match, mine.f1) == pytest.approx(expected)


def test_absent_texts_are_not_searched() -> None:
    class Counted(str):
        searches = 0

        def find(self, *args: object) -> int:  # type: ignore[override]
            Counted.searches += 1
            return super().find(*args)  # type: ignore[arg-type]

    occurrences = Occurrences(Counted("the quick brown fox jumps over the lazy dog " * 100))
    for number in range(1000):
        assert occurrences.find(f"absent answer {number}") == -1
    assert Counted.searches == 0
    assert occurrences.find("brown") == 10


def test_messages_stay_short(tmp_path: Path) -> None:
    long = "y" * 100_000
    rows = [{"id": f"{n}{long}", "context": "a b", "question": "", "answers": long} for n in "12"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(InputError) as caught:
        read_passages(tmp_path / "rows.json")
    assert len(str(caught.value)) < 2000

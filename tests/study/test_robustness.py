"""Questions written otherwise, and the scores of AddSent."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from study.robustness import _addsent, with_questions, with_typos
from tests.answer.conftest import DATA, RIGHT

from loraqa.squad import Passage, QADataset, Question, score

QUESTION = "Which emperor surrendered the northern provinces without fighting?"


def _distance(first: str, second: str) -> int:
    """Return the edit distance with transpositions (Damerau-Levenshtein, restricted)."""
    d = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    d[:, 0], d[0] = range(len(first) + 1), range(len(second) + 1)
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return int(d[-1, -1])


@given(st.text(alphabet="abcXYZé 7?'", max_size=40))
def test_a_word_has_one_typo_at_most_and_never_in_its_first_letter(text: str) -> None:
    mistyped = with_typos(text)
    assert with_typos(text) == mistyped
    words, changed = text.split(" "), mistyped.split(" ")
    for word, other in zip(words, changed, strict=True):
        # A piece of text without blanks may hold several words.
        assert _distance(word, other) <= max(1, len(word) // 4)
        assert word[:1] == other[:1]


def test_about_a_quarter_of_the_longer_words_is_mistyped() -> None:
    questions = [
        QUESTION.replace("emperor", f"emperor{'abcdefghij'[n % 10] * (n + 1)}") for n in range(60)
    ]
    changed = [
        sum(a != b for a, b in zip(q.split(), with_typos(q).split(), strict=True))
        for q in questions
    ]
    longer = sum(len(word.strip("?")) >= 4 for word in QUESTION.split()) * len(questions)
    assert 0.18 < sum(changed) / longer < 0.32
    assert all(with_typos(q).endswith("?") for q in questions)
    assert with_typos("Who is it, or was it on 12345678?") == "Who is it, or was it on 12345678?"


def test_rewriting_leaves_everything_but_the_questions() -> None:
    upper = with_questions(DATA, str.upper)
    assert [q.text for q in upper.questions] == [q.text.upper() for q in DATA.questions]
    assert with_questions(upper, lambda _: "x") == with_questions(DATA, lambda _: "x")


@pytest.mark.parametrize(("variants", "worst"), [((True, True), 50), ((True, False), 0)])
def test_addsent_counts_the_worst_variant_of_each_question(
    variants: tuple[bool, ...], worst: float
) -> None:
    """Question "a" is right and has variants; "b" is wrong and has none."""
    gold = RIGHT["b1"]
    asked = [Question(id, "Who?", golds=tuple(gold)) for id in ("a", "b")]
    passages = [Passage("A king.", tuple(asked))]
    passages += [
        Passage("A king.", (replace(asked[0], id=f"a-turk{n}"),)) for n in range(len(variants))
    ]
    data = QADataset.from_passages(passages, "1.1")
    given_answers = {"a": gold[0], "b": "queen"}
    given_answers |= {
        f"a-turk{n}": gold[0] if right else "queen" for n, right in enumerate(variants)
    }
    figures = _addsent(score(given_answers, data), data)
    assert figures["questions"] == 2
    assert figures["own_context"]["exact_match"][0] == 50
    assert figures["worst"]["exact_match"][0] == worst

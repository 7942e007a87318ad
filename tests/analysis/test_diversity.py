"""Figures of diversity, against sums by hand and sacrebleu's own function."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from loraqa.analysis.diversity import distinct_ngrams, entropy, self_bleu

texts = st.lists(st.text(alphabet="ab ", max_size=8).map(lambda t: " ".join(t.split())), min_size=2)


def test_entropy_is_that_of_fair_coins() -> None:
    assert entropy(["a"]) == entropy(["a", "a"]) == 0
    assert entropy(["a", "b"]) == pytest.approx(math.log(2))
    assert entropy(["a", "b", "c", "d"] * 2) == pytest.approx(2 * math.log(2))


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_entropy_is_the_mean_information_of_an_answer(answers: list[str]) -> None:
    shares = {answer: answers.count(answer) / len(answers) for answer in answers}
    information = [-math.log(shares[answer]) for answer in answers]
    assert entropy(answers) == pytest.approx(math.fsum(information) / len(answers), abs=1e-12)


def test_distinct_ngrams_are_counted_within_a_question() -> None:
    questions = [["ruth olen", "ruth olen", "olen"], ["ruth olen", "ruth olen"]]
    assert distinct_ngrams(questions, 1) == pytest.approx((2 + 2) / (5 + 4))
    assert distinct_ngrams(questions, 2) == pytest.approx((1 + 1) / (2 + 2))
    assert distinct_ngrams(questions, 3) is None
    assert distinct_ngrams([["x", "x", "x", "x"]], 1) == 1 / 4
    assert distinct_ngrams([["x", "y"]], 1) == 1


@given(texts)
def test_bigrams_are_pairs_of_neighbours(answers: list[str]) -> None:
    pairs = Counter(p for a in answers for p in zip(a.split(), a.split()[1:], strict=False))
    expected = len(pairs) / pairs.total() if pairs else None
    assert distinct_ngrams([answers], 2) == expected


def test_answers_that_are_equal_have_the_highest_self_bleu() -> None:
    assert self_bleu(["ruth olen"] * 3) == self_bleu([""] * 2) == 100
    assert self_bleu(["ruth", "olen"]) == 0


def test_self_bleu_is_the_mean_bleu_against_the_others() -> None:
    answers = ["the old mill on the river", "old mill on the river", "the mill", "1203"]
    scores = [
        sentence_bleu(answer, answers[:i] + answers[i + 1 :], use_effective_order=True).score
        for i, answer in enumerate(answers)
    ]
    assert self_bleu(answers) == pytest.approx(sum(scores) / 4)


def test_self_bleu_of_short_answers_equals_computation_by_hand() -> None:
    """ "mill" is too short by a word; of "old mill" one word of two is right, and no pair."""
    smoothed = 1 / 2
    second = 100 * math.sqrt(1 / 2 * smoothed)
    assert self_bleu(["mill", "old mill"]) == pytest.approx((100 * math.exp(-1) + second) / 2)

"""How much several answers to the same question differ.

All functions take answers as SQuAD normalizes them: lower-case words with blanks between.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log
from statistics import fmean


def entropy(answers: Sequence[str]) -> float:
    """Return the entropy of the answers' frequencies, in nats: 0 if they are all equal."""
    total = len(answers)
    return sum(n / total * log(total / n) for n in Counter(answers).values())


def distinct_ngrams(questions: Iterable[Sequence[str]], length: int) -> float | None:
    """Return which share of the n-grams of a question's answers are different ones.

    This is distinct-n (Li et al., 2016, arXiv:1510.03055), counted within each question and added
    up over all, so that questions about different things are not taken for diversity.

    Args:
        questions: the answers to each question.
        length: the number of words of an n-gram.

    Returns:
        The share, 0 to 1; None if no answer has so many words.
    """
    ngrams = [[gram for text in texts for gram in _ngrams(text, length)] for texts in questions]
    total = sum(map(len, ngrams))
    return sum(len(set(grams)) for grams in ngrams) / total if total else None


def self_bleu(answers: Sequence[str]) -> float:
    """Return the mean BLEU of each answer against the others, 0 to 100: 100 if all are equal.

    This is Self-BLEU (Zhu et al., 2018, arXiv:1802.01886) by sacrebleu, up to 4-grams; of an answer
    with fewer words the n-grams that it has.

    Args:
        answers: at least two answers to a question.
    """
    # sacrebleu gives 0 to answers without words.
    if len(set(answers)) == 1:
        return 100.0
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(effective_order=True, tokenize="none")
    scores = [
        bleu.sentence_score(text, [*answers[:place], *answers[place + 1 :]]).score
        for place, text in enumerate(answers)
    ]
    return fmean(scores)


def _ngrams(text: str, length: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]

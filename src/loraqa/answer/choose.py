"""Choose one of several answers to a question: by their votes, or by their expected F1."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from loraqa.answer.answered import Answered
from loraqa.answer.windows import reading
from loraqa.squad import token_f1


def vote(answers: Sequence[Answered]) -> Answered:
    """Return the answer that most of the answers read like; of ties the most probable.

    Any answer comes before "no answer" in a tie. This is self-consistency (Wang et al., 2022,
    arXiv:2203.11171).
    """
    votes = Counter(reading(answer.text) for answer in answers)
    return max(answers, key=lambda answer: (votes[reading(answer.text)], *answer.rank))


def least_risk(answers: Sequence[Answered], weights: Sequence[float]) -> Answered:
    """Return the answer with the highest expected F1 if one of the answers is right.

    This is minimum Bayes risk decoding (Kumar and Byrne, 2004) whose loss is 1 - F1. Of ties the
    answer with more weight is chosen, then the most probable.

    Args:
        answers: the answers to a question.
        weights: how probable it is that each is right, up to a factor.
    """
    evidence: dict[str, float] = defaultdict(float)
    for answer, weight in zip(answers, weights, strict=True):
        evidence[reading(answer.text)] += weight
    if len(evidence) == 1:
        return max(answers, key=lambda answer: answer.rank)
    # `fsum` does not depend on the order, so that ties are ties.
    expected = {
        text: math.fsum(weight * token_f1(text, other) for other, weight in evidence.items())
        for text in evidence
    }

    def rank(answer: Answered) -> tuple[float, float, bool, float]:
        text = reading(answer.text)
        return expected[text], evidence[text], *answer.rank

    return max(answers, key=rank)

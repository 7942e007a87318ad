"""An answer as people get it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to a question.

    Attributes:
        question_id: the id of the question.
        text: the answer; empty if the context holds none.
        log_probability: ln p of its tokens and its end, summed, in nats, in the model's own
            distribution.
        mean_log_probability: `log_probability` divided by the number of tokens.
        start, end: where the answer stands in the context (see `locate`); None if it does not.
        no_answer_probability: the probability of "no answer" against the best answer alone: their
            sum is taken as 1. Of several windows the lowest.
        probability_at_least, probability_at_most: bounds of the answer's share of the probability
            of all spans and "no answer" (see `choose`); None if no spans were searched.
        paths: how many paths the span search extended by a token for this question.
        exact: false if the span search stopped before it was sure of the best answers.
        votes: how many of the answers to the question read like this one; it counts itself.
        confidence: the calibrated probability that the answer is right; None where the model was
            not calibrated, or no spans were searched.
        tokens: how many tokens it has, its end included.
    """

    question_id: str
    text: str
    log_probability: float
    mean_log_probability: float
    start: int | None
    end: int | None
    no_answer_probability: float
    probability_at_least: float | None = None
    probability_at_most: float | None = None
    paths: int | None = None
    exact: bool | None = None
    votes: int = 1
    confidence: float | None = None
    tokens: int = 1

    @property
    def span_probability(self) -> float | None:
        """The middle of the bounds of its share; None if no spans were searched."""
        if self.probability_at_least is None or self.probability_at_most is None:
            return None
        return (self.probability_at_least + self.probability_at_most) / 2

    @property
    def probability(self) -> float:
        """The model's own probability of the answer, not calibrated: its share, if it is known."""
        found = self.span_probability
        return math.exp(self.log_probability) if found is None else found

    @property
    def rank(self) -> tuple[bool, float]:
        """A key to sort by: any answer comes before "no answer", then the more probable one."""
        return self.text != "", self.log_probability

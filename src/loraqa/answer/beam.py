"""Beam search over all prompts of a batch, with the same answers as transformers' `generate`.

Each step extends the beams of every question by one token. The best continuations that end an
answer become finished answers; the best of the others become the next beams. A question whose
finished answers cannot improve any more leaves the batch.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from loraqa.answer.decode import Ends, Prompts, Written, collect


class _Beams(NamedTuple):
    """W answers to each of Q questions, best first.

    Attributes:
        tokens: (Q, W, longest) token ids, padded with -1.
        scores: (Q, W).
    """

    tokens: Tensor
    scores: Tensor

    @classmethod
    def none(
        cls, questions: int, width: int, longest: int, score: float, device: torch.device
    ) -> "_Beams":
        """Return empty answers, all with the given score."""
        return cls(
            torch.full((questions, width, longest), -1, device=device),
            torch.full((questions, width), score, device=device),
        )

    def of(self, questions: Tensor) -> "_Beams":
        """Return the answers to some of the questions."""
        return _Beams(self.tokens[questions], self.scores[questions])

    def best(self, other: "_Beams", count: int) -> "_Beams":
        """Return the best `count` answers of both for each question."""
        tokens = torch.cat([self.tokens, other.tokens], dim=1)
        scores, places = torch.cat([self.scores, other.scores], dim=1).topk(count)
        return _Beams(tokens.take_along_dim(places[:, :, None], dim=1), scores)


@dataclass(frozen=True)
class BeamSearch:
    """The best finished answers that beam search finds, at most one per beam.

    Attributes:
        width: number of beams per question.
        length_penalty: an answer's score is its log-probability divided by its number of tokens
            (including the end token) to this power.
        early_stopping: when a question is done. True: as soon as it has `width` finished answers.
            False: when also its best beam scores no higher than the worst of these, at its present
            length. "never": as False, but at the length that suits the beam best.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    draws: bool = False

    @property
    def name(self) -> str:
        """See `Strategy`."""
        return f"beam:{self.width}"

    @property
    def rows(self) -> int:
        """See `Strategy`."""
        return self.width

    def write(self, prompts: Prompts) -> list[list[Written]]:
        """See `Strategy`."""
        session, logits, limit = prompts.session, prompts.logits, prompts.rules.max_answer_tokens
        ends = Ends(prompts.rules, logits)
        questions = torch.arange(len(logits), device=logits.device)
        beams = _Beams.none(len(logits), 1, limit, 0.0, logits.device)
        finished = _Beams.none(len(logits), self.width, limit, -torch.inf, logits.device)
        count = min(prompts.answers, self.width)
        answers = _Beams.none(len(logits), count, limit, -torch.inf, logits.device)
        for step in range(limit):
            log_probs = logits.float().log_softmax(dim=-1)
            scores = beams.scores[:, :, None] + log_probs.view(*beams.scores.shape, -1)
            best, _ = self._extend(beams, scores, step)
            ended = ends.at(best.tokens[:, :, step], ends.begun(best.tokens[:, :, :step]))
            ended |= step + 1 == limit
            normalised = (best.scores / (step + 1) ** self.length_penalty).where(ended, -torch.inf)
            finished = finished.best(best._replace(scores=normalised), self.width)
            answers.tokens[questions] = finished.tokens[:, :count]
            answers.scores[questions] = finished.scores[:, :count]
            scores.masked_fill_(ends.after(ends.begun(beams.tokens[:, :, :step])), -torch.inf)
            first_rows = beams.scores.shape[1] * torch.arange(len(questions), device=logits.device)
            beams, parents = self._extend(beams, scores, step)
            going_on = self._may_improve(beams, finished, step + 1, limit).nonzero()[:, 0]
            if not len(going_on):
                break
            session.select((first_rows[:, None] + parents)[going_on].flatten())
            beams, finished = beams.of(going_on), finished.of(going_on)
            questions = questions[going_on]
            logits = session.advance(beams.tokens[:, :, step].flatten())
        return self._written(answers)

    def _extend(self, beams: _Beams, scores: Tensor, step: int) -> tuple[_Beams, Tensor]:
        """Return the best continuations by `scores` (Q, W, vocabulary) and the beam of each."""
        best, places = scores.flatten(1).topk(self.width)
        parents = places // scores.shape[-1]
        tokens = beams.tokens.take_along_dim(parents[:, :, None], dim=1)
        tokens[:, :, step] = places % scores.shape[-1]
        return _Beams(tokens, best), parents

    def _may_improve(self, beams: _Beams, finished: _Beams, length: int, limit: int) -> Tensor:
        """Return (Q,) whether to continue each question; its beams are `length` tokens long."""
        worst = finished.scores[:, -1]
        if self.early_stopping is True:
            return (worst == -torch.inf) & (length < limit)
        hopeful = self.early_stopping == "never" and self.length_penalty > 0
        divisor: float = (limit if hopeful else length) ** self.length_penalty
        return (beams.scores[:, 0] / divisor > worst) & (length < limit)

    def _written(self, answers: _Beams) -> list[list[Written]]:
        lengths = (answers.tokens >= 0).sum(dim=-1)
        totals = answers.scores * lengths**self.length_penalty
        return [
            collect(tokens[finished], scores[finished])
            for tokens, scores, finished in zip(
                answers.tokens, totals, answers.scores > -torch.inf, strict=True
            )
        ]

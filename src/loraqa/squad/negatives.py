"""Questions about contexts that do not hold their answer, to learn to say so.

A model that has only seen questions with an answer finds one in any text. So some questions are
asked again, on the context that matches them best of all that do not hold their answer. In a tree
such a question costs its own few tokens, because the context is computed anyway.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from loraqa.squad.dataset import QADataset
from loraqa.squad.passage import Passage, Question
from loraqa.squad.ranking import Ranking
from loraqa.squad.score import normalize_answer

# How many of the best matches may hold the answer before a question is left alone.
_TRIED = 20


def with_negatives(data: QADataset, share: float, seed: int) -> QADataset:
    """Ask a share of the answerable questions on another context, too.

    The other context is of the same title, if there are several of it, because such contexts are
    the hardest to tell apart. Contexts with any of the answers are left out.

    Args:
        data: the questions.
        share: which share of the questions is asked twice.
        seed: random seed of their choice.
    """
    random = np.random.default_rng(seed)
    passages = list(data.passages)
    added: list[str] = []
    for group in _groups(passages):
        contexts = _Contexts([data.passages[index].context for index in group])
        for own, index in enumerate(group):
            for question in data.passages[index].questions:
                if random.random() >= share or not question.answerable:
                    continue
                other = contexts.best_without_answer(own, question)
                if other is not None:
                    negative = Question(f"{question.id} elsewhere", question.text)
                    place = group[other]
                    questions = (*passages[place].questions, negative)
                    passages[place] = replace(passages[place], questions=questions)
                    added.append(negative.id)
    return replace(data, passages=tuple(passages), order=(*data.order, *added))


def _groups(passages: Sequence[Passage]) -> Iterator[list[int]]:
    """Yield the numbers of the passages of each title; those that are alone make one group."""
    titles: dict[str, list[int]] = {}
    for index, passage in enumerate(passages):
        titles.setdefault(passage.title, []).append(index)
    yield from (group for group in titles.values() if len(group) > 1)
    yield [index for group in titles.values() if len(group) == 1 for index in group]


class _Contexts:
    """Contexts among which a question may be asked."""

    def __init__(self, contexts: Sequence[str]) -> None:
        self._ranking = Ranking(contexts)
        self._normalized = [normalize_answer(context) for context in contexts]

    def best_without_answer(self, own: int, question: Question) -> int | None:
        """Return the number of the best match that is not `own` and holds no answer, if any."""
        # Parts of words count, too: in many scripts no blanks stand between words.
        golds = [normalize_answer(text) for text in question.golds]
        for number in self._ranking.order(question.text)[:_TRIED]:
            if number != own and not any(gold in self._normalized[number] for gold in golds):
                return number
        return None

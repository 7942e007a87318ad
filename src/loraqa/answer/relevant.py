"""Keep the windows of a long text that are worth reading for each question, and weigh them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from loraqa.prompt.tree import Tree
from loraqa.squad import Passage
from loraqa.squad.ranking import Ranking

# By how much a point of BM25 raises ln of the probability that a window holds the answer. On SQuAD
# 0.5 is best, but its questions repeat the words of their paragraphs more than others do.
_LOG_ODDS_OF_A_POINT = 0.4


def keep_relevant(
    trees: Sequence[Tree], passages: Sequence[Passage], most: int | None
) -> list[Tree]:
    """Let each question be asked on at most `most` windows of its passage; None is on all.

    The windows that match the question best by BM25 are kept. A window stays one tree, with
    the questions that are asked on it. Each branch of several windows gets its `log_prior`.

    Args:
        trees: the windows of all passages, in order, each with all questions of its passage.
        passages: the passages.
        most: how many windows a question may have.
    """
    kept: list[Tree] = []
    for index, group in groupby(trees, lambda tree: tree.passage):
        windows = list(group)
        kept += windows if len(windows) == 1 else _relevant(windows, passages[index], most)
    return kept


def _relevant(windows: Sequence[Tree], passage: Passage, most: int | None) -> Iterator[Tree]:
    ranking = Ranking([passage.context[slice(*window.window)] for window in windows])
    priors = [_log_priors(ranking, question.text, most) for question in passage.questions]
    for number, window in enumerate(windows):
        branches = tuple(
            replace(branch, log_prior=of_windows[number])
            for branch, of_windows in zip(window.branches, priors, strict=True)
            if number in of_windows
        )
        if branches:
            yield replace(window, branches=branches)


def _log_priors(ranking: Ranking, question: str, most: int | None) -> Mapping[int, float]:
    """Return ln of the probability that each of the best windows holds the answer, by number."""
    best = ranking.order(question)[:most]
    logs = _LOG_ODDS_OF_A_POINT * ranking.scores(question)[best].astype(float)
    return dict(zip(best, (logs - np.logaddexp.reduce(logs)).tolist(), strict=True))

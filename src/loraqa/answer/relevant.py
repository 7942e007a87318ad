"""Keep the windows of a long text that are worth reading for each question."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from loraqa.prompt.tree import Tree
from loraqa.squad import Passage
from loraqa.squad.ranking import Ranking


def keep_relevant(
    trees: Sequence[Tree], passages: Sequence[Passage], most: int | None
) -> list[Tree]:
    """Let each question be asked on at most `most` windows of its passage; None is on all.

    The windows whose words match the question best are kept. A window stays one tree, with the
    questions that are asked on it.

    Args:
        trees: the windows of all passages, in order, each with all questions of its passage.
        passages: the passages.
        most: how many windows a question may have.
    """
    if most is None:
        return list(trees)
    kept: list[Tree] = []
    for index, group in groupby(trees, lambda tree: tree.passage):
        windows = list(group)
        kept += windows if len(windows) <= most else _relevant(windows, passages[index], most)
    return kept


def _relevant(windows: Sequence[Tree], passage: Passage, most: int) -> Iterator[Tree]:
    ranking = Ranking([passage.context[slice(*window.window)] for window in windows])
    best = [set(ranking.order(question.text)[:most]) for question in passage.questions]
    for number, window in enumerate(windows):
        asked = zip(window.branches, best, strict=True)
        branches = tuple(branch for branch, numbers in asked if number in numbers)
        if branches:
            yield replace(window, branches=branches)

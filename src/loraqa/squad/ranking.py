"""Rank texts by how well their words match a question: BM25 (Robertson et al. 1995)."""

import logging
from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import bm25s
import numpy as np
from numpy.typing import NDArray

from loraqa.squad.segmentation import words

# It tells of each index that it builds.
logging.getLogger("bm25s").setLevel(logging.WARNING)

# Method "lucene" of the library: its inverse document frequencies are never negative.
_K1, _B = 1.2, 0.75


class Ranking:
    """Ranks texts for questions.

    Args:
        texts: the texts to rank, in any language.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def order(self, question: str) -> list[int]:
        """Return the numbers of all texts, the best match first; among equals in their order."""
        order: list[int] = np.argsort(-self.scores(question), kind="stable").tolist()
        return order

    def scores(self, question: str) -> NDArray[np.float32]:
        """Return (texts,) how well each text matches, at least 0."""
        known = [term for term in terms(question) if term in self._known]
        if not known:
            return np.zeros(len(self._texts), dtype=np.float32)
        return self._index.get_scores(known)  # type: ignore[no-any-return]

    @cached_property
    def _index(self) -> bm25s.BM25:
        index = bm25s.BM25(method="lucene", k1=_K1, b=_B)
        index.index(self._terms, show_progress=False)
        return index

    @cached_property
    def _terms(self) -> list[list[str]]:
        return [terms(text) for text in self._texts]

    @cached_property
    def _known(self) -> set[str]:
        return set(chain(*self._terms))


def terms(text: str) -> list[str]:
    """Return the words of a text without differences of case.

    In scripts without blanks between words these are graphemes.
    """
    return [text[start:end].casefold() for start, end in words(text)]

"""The callback that reports how many questions are answered."""

from typing import Protocol


class Progress(Protocol):
    """Called again and again while questions are answered.

    Where every question is answered several times, as by many strategies, answers are counted.
    """

    def __call__(self, done: float, total: int, part: str = "") -> None:
        """Report that `done` of `total` are answered, in this part of the work if any.

        A question whose context is read in windows is answered bit by bit. The first call says that
        none is.
        """

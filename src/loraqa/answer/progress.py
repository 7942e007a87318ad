"""The callback that reports how many prompts are answered."""

from typing import Protocol


class Progress(Protocol):
    """Called again and again while prompts are answered; each window of a context is a prompt."""

    def __call__(self, done: int, total: int, part: str = "") -> None:
        """Report that `done` of `total` prompts are answered, in this part of the work if any.

        The first call says that none is.
        """

"""Passing questions of trials on. Importing this loads little: a process does nothing else."""

import asyncio


class Judges:
    """Passes the questions of trials on to the process that has the storage, and back."""

    def __init__(self) -> None:
        self._asked: list[tuple[int, int, float]] = []
        self._verdicts: dict[int, asyncio.Future[bool]] = {}

    async def ask(self, number: int, step: int, f1: float) -> bool:
        """Return whether a trial is behind, once that is known; step 0 is its beginning."""
        self._verdicts[number] = asyncio.get_running_loop().create_future()
        self._asked.append((number, step, f1))
        return await self._verdicts[number]

    async def asked(self) -> list[tuple[int, int, float]]:
        """Return the questions that were asked since the last call."""
        asked, self._asked = self._asked, []
        return asked

    async def say(self, number: int, is_behind: bool) -> None:
        """Answer the question of a trial."""
        if not self._verdicts[number].done():
            self._verdicts[number].set_result(is_behind)

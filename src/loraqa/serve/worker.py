"""One thread that computes for one request after another, and stops for those that end early."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

T = TypeVar("T")


class BusyError(Exception):
    """Too many others wait."""


class Worker:
    """Does one piece of work at a time, with all cores, while a bounded number of others wait."""

    def __init__(self, most_waiting: int) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._most_waiting = most_waiting

    async def do(self, work: Callable[[Event], T]) -> T:
        """Return what `work` returns, once it is its turn. Cancelling sets the event it is given.

        Raises:
            BusyError: as many others wait as may.
        """
        await self._wait_for_turn()
        stop, loop = Event(), asyncio.get_running_loop()

        def end_turn(_: Any) -> None:
            # Only when the thread is free: stopping takes a moment, and the server may be gone.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._turn.release)

        job = self._thread.submit(work, stop)
        job.add_done_callback(end_turn)
        try:
            return await asyncio.wrap_future(job)
        finally:
            stop.set()

    def check_room(self) -> None:
        """Raise `BusyError` if as many wait as may."""
        if self._turn.locked() and self._waiting >= self._most_waiting:
            raise BusyError

    async def _wait_for_turn(self) -> None:
        self.check_room()
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

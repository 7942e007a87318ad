"""Connections that are cut when their client is slow, sends nothing, or reads nothing."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CLIENT_SECONDS = 10.0
"""Seconds in which a client sends a request, or a MiB of it, and in which it reads a response."""
MAX_CONNECTIONS = 200

# Who sends so much of a long request has as many seconds again.
_PIECE = 2**20
# A client may send its next request while it waits for a response, up to this size in bytes.
_MOST_AHEAD = 64 * 1024
# What a client does wrong is no warning to the server's owner.
_logger = logging.getLogger("uvicorn.error.client")
_logger.setLevel(logging.ERROR)


class Connection(H11Protocol):
    """A connection of uvicorn's that does not wait for its client for ever."""

    client_seconds = CLIENT_SECONDS
    max_connections = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _logger
        self._clock: asyncio.TimerHandle | None = None
        self._received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.max_connections:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        if self._is_computing():
            self._read_ahead()
        elif self._received >= _PIECE and self._wants_more():
            self._stop_clock()
        self._watch()

    def _read_ahead(self) -> None:
        """Go on reading at the next request, or nobody would notice that the client leaves."""
        self.flow.resume_reading()
        if len(self.conn.trailing_data[0]) > _MOST_AHEAD:
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def _watch(self) -> None:
        """Let the clock run while the server waits for the client, and only then."""
        if self._is_computing():
            self._stop_clock()
        elif self._clock is None:
            self._clock = self.loop.call_later(self.client_seconds, self.transport.abort)

    def _wants_more(self) -> bool:
        """Return whether the rest of a request is not yet answered, as a refused one is."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_computing(self) -> bool:
        cycle = self.cycle
        answering = cycle is not None and not cycle.more_body and not cycle.response_complete
        return answering and not self.flow.write_paused

    def _stop_clock(self) -> None:
        self._received = 0
        if self._clock:
            self._clock.cancel()
            self._clock = None

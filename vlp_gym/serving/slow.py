"""An HTTP protocol for uvicorn that waits for no slow client: neither for its request, nor until it reads."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 60.0  # from the first byte of a request to its last; also until the first one of a new connection
READING_S = 30.0  # in which an answer that fills the system's buffers must begin to flow


class ImpatientProtocol(H11Protocol):
    """uvicorn's own, with two deadlines; a client that misses one is cut off, which costs nobody else anything."""

    _coming: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._coming = self.loop.call_later(REQUEST_S, self._cut)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a request; stop it with the last."""
        if self._coming is None:
            self._coming = self.loop.call_later(REQUEST_S, self._cut)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.more_body:
            self._coming.cancel()
            self._coming = None

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._reading = self._reading or self.loop.call_later(READING_S, self._cut)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        for timer in (self._coming, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _cut(self) -> None:
        self.transport.abort()

"""One connection over HTTP, which a slow or silent client can't keep."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

CLIENT_SECONDS = 10.0  # to send a whole request, and to take more of an answer
MAX_CONNECTIONS = 128
MAX_HEADER_BYTES = 32 << 10


class Connection(H11Protocol):
    """uvicorn's connection, with the bounds that it lacks.

    It closes when the client takes `CLIENT_SECONDS` to send a request, or takes nothing of an answer for as long. A
    connection beyond `MAX_CONNECTIONS` closes at once.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_client()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self._client_did_its_part()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_client()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_client()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._client_did_its_part()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_did_its_part()
        super().connection_lost(exc)

    def _wait_for_client(self) -> None:
        self._client_did_its_part()
        self._deadline = self.loop.call_later(CLIENT_SECONDS, self.transport.abort)

    def _client_did_its_part(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

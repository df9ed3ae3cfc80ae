"""Serves an app over HTTP from a thread, so that no page ever delays the depot's event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from concurrent.futures import Future

import uvicorn
from starlette.types import ASGIApp

from service.http.connection import MAX_HEADER_BYTES, Connection
from service.rpc.listen import CannotListen

logger = logging.getLogger(__name__)

BACKLOG = 128
GRACE_SECONDS = 0.5  # for answers that are on their way at the end; longer streams are cut
END_SECONDS = 3.0


class HttpServer:
    """An app at `address` (HOST:PORT, the port that the system chose for port 0), in a thread with a loop of its own.

    The constructor binds the address. The app answers from `start` on. It must not touch the depot's state: it asks the
    depot's event loop, or reads what any thread may read. `purpose` says in errors what is served.

    Raises: CannotListen.
    """

    def __init__(self, host: str, port: int, purpose: str) -> None:
        shown_host = f"[{host}]" if ":" in host else host
        try:
            self._socket = _bind(host, port)
        except OSError as error:
            raise CannotListen(
                f"{shown_host}:{port}, for {purpose}, is taken, or not an address of this machine"
            ) from error
        self.address = f"{shown_host}:{self._socket.getsockname()[1]}"
        self._purpose = purpose
        self._server: _Uvicorn | None = None
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()  # so that it can't be cancelled: the thread sets its result
        self._thread = threading.Thread(target=self._run, name=f"http {purpose}", daemon=True)

    def __repr__(self) -> str:
        return f"<HttpServer {self.address}, for {self._purpose}>"

    @property
    def num_connections(self) -> int:
        """Open connections. For any thread."""
        return len(self._server.server_state.connections) if self._server is not None else 0

    def start(self, app: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        """Answer from here on, over TLS if there is a context for it."""
        self._server = _Uvicorn(_config(app, tls))
        self._thread.start()

    async def close(self) -> None:
        """Answer no more, and cut what has not ended after `GRACE_SECONDS`. Takes `END_SECONDS` at most."""
        if self._server is None:
            self._socket.close()
            return
        self._server.should_exit = True
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=END_SECONDS)
        if not self._ended.done():
            logger.warning("HttpAbandoned address=%r", self.address)

    def _run(self) -> None:
        assert self._server is not None
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except Exception:
            logger.exception("HttpEnded address=%r: nothing is served there until the depot is restarted", self.address)
        finally:
            self._socket.close()
            self._ended.set_result(None)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server. It handles signals in the main thread only, and so handles none here."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers end for a moment, then cut them. Without a cut uvicorn logs an error for each stream."""
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=GRACE_SECONDS)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def _config(app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,  # its records go where all others go
        log_level=logging.ERROR,  # its warnings are about clients' faults
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        workers=1,
        backlog=BACKLOG,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    config.load()
    config.ssl = tls
    return config


def _bind(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address[:2])
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound

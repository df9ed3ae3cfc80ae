"""A predecessor with a memfd that keeps what was asked of it, and the two ends of a takeover without our code."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.process.takeover.lines import TakeoverRequest
from service.process.takeover.listener import Handover

CONTENT = b"chunks" * 1_000
REQUEST = {"protocol": 1, "software_version": "0.2.0", "timeout_seconds": 30.0}


def memfd(content: bytes = CONTENT) -> int:
    """Return a new memfd with this content."""
    fd = os.memfd_create("l1")
    os.write(fd, content)
    return fd


def open_descriptors() -> set[str]:
    """Return what this process's descriptors name, each with its number."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{link.name} {link.readlink()}")
        except FileNotFoundError:
            continue  # that of the folder itself
    return found


class FakePredecessor:
    """Drains at once, or when `finish` is set. `calls` are what was asked of it, in order."""

    def __init__(self, *, at_once: bool = True, failure: Exception | None = None) -> None:
        self.fd = memfd()
        self.calls: list[str] = []
        self.requests: list[TakeoverRequest] = []
        self.draining = asyncio.Event()
        self.finish = asyncio.Event()
        self.failure = failure
        self.release_failure: Exception | None = None
        if at_once:
            self.finish.set()

    async def drain(self, request: TakeoverRequest, report: Callable[[str], None]) -> Handover:
        self.calls.append("drain")
        self.requests.append(request)
        report("3 calls are running\nlate")
        self.draining.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            raise
        if self.failure is not None:
            raise self.failure
        return Handover(self.fd, {"l1_bytes": len(CONTENT), "epoch": "7"})

    async def serve_on(self) -> None:
        self.calls.append("serve on")

    async def let_go(self) -> None:
        self.calls.append("let go")
        if self.release_failure is not None:
            raise self.release_failure


class RawSuccessor:
    """A blocking connection to a takeover socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10.0)
        self.socket.connect(str(path))
        self._lines = self.socket.makefile("rb")

    def send(self, line: Any) -> None:
        """Send a JSON line, or bytes as they are."""
        self.socket.sendall(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next line that is no progress. None: the connection is closed. Descriptors are lost."""
        while line := self._lines.readline():
            decoded: dict[str, Any] = json.loads(line)
            if "progress" not in decoded:
                return decoded
        return None

    def close(self) -> None:
        """Vanish."""
        self._lines.close()
        self.socket.close()


@contextmanager
def raw_predecessor(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Listen at a path, and answer the request of one successor in a thread."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(8_192)
            answer(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(20.0)
        assert not thread.is_alive()

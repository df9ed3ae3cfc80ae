"""A successor's connection at the predecessor: lines with a bound on their length and their time."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from service.process.takeover.lines import (
    MAX_LINE_BYTES,
    PROTOCOL,
    Line,
    NotUnderstood,
    decode,
    encode,
    printable,
)

LINE_SECONDS = 2.0


class SuccessorLost(Exception):
    """The successor vanished, or did not follow the protocol."""


class Connection:
    """A successor's connection: lines with a bound on their length and on their time. Descriptors are not received."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = b""

    async def receive(self, seconds: float) -> Line:
        """Raises: SuccessorLost, NotUnderstood."""
        try:
            async with asyncio.timeout(seconds):
                while b"\n" not in self._received:
                    if len(self._received) >= MAX_LINE_BYTES:
                        raise NotUnderstood(f"a line has at most {MAX_LINE_BYTES} bytes")
                    self._received += await self._receive_more()
        except TimeoutError:
            raise SuccessorLost(f"the successor has sent no line within {seconds:g} s") from None
        line, _, self._received = self._received.partition(b"\n")
        return decode(line)

    def expect_silence(self) -> None:
        """Raises: NotUnderstood, if more than a line has come already."""
        if self._received:
            raise NotUnderstood("the successor sends lines before their turn")

    async def anything(self) -> None:
        """Return when the successor sends anything, or vanishes. It has nothing to say while the depot drains."""
        with suppress(SuccessorLost):
            self._received += await self._receive_more()

    async def send(self, line: Line, fd: int | None = None) -> None:
        """Raises: SuccessorLost, NotUnderstood."""
        encoded = encode(line)
        try:
            if fd is not None:
                # If the buffer is full, this fails at once. A successor that reads has emptied it.
                encoded = encoded[socket.send_fds(self.socket, [encoded], [fd]) :]
            async with asyncio.timeout(LINE_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self.socket, encoded)
        except TimeoutError:
            raise SuccessorLost(f"the successor has read nothing for {LINE_SECONDS:g} s") from None
        except OSError as error:
            raise SuccessorLost(f"the successor vanished: {error.strerror}") from error

    async def refuse(self, reason: str) -> None:
        """Tell the successor why it gets nothing, if it is still there."""
        with suppress(SuccessorLost):
            await self.send({"refused": printable(reason), "protocol": PROTOCOL})

    async def _receive_more(self) -> bytes:
        try:
            received = await asyncio.get_running_loop().sock_recv(self.socket, MAX_LINE_BYTES)
        except OSError as error:
            raise SuccessorLost(f"the successor vanished: {error.strerror}") from error
        if not received:
            raise SuccessorLost("the successor vanished")
        return received

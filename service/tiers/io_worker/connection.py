"""The depot's end of the socket to an I/O worker: one job at a time, and its replies as they arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from service.tiers.io_worker.job import Job, JobEnd
from service.tiers.io_worker.messages import MAX_BLOB_BYTES, MAX_LINE_BYTES, ProtocolBroken, line, number_in, parse

Outcome = tuple[JobEnd, str, list[int]]
"""How a job ended, why, and its result."""


class Connection(asyncio.Protocol):
    """Sends a job's request, and gives the job its replies. `on_lost` is called when the other side is gone."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self.is_lost = False
        self.is_unusable = False
        """The last error said that the store can't be used as it is set up."""
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport
        self._received = bytearray()
        self._blob_bytes = 0  # of a blob that arrives
        self._job: Job | None = None
        self._outcome: asyncio.Future[Outcome] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport: see asyncio."""
        self._transport = cast(asyncio.WriteTransport, transport)  # that of uvloop has no base class

    def connection_lost(self, exc: Exception | None) -> None:
        """End the job: see asyncio."""
        self.is_lost = True
        self._finish(JobEnd.CRASH, "the I/O worker ended by itself")
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Take all whole messages: see asyncio."""
        self._received += data
        try:
            while self._take_message():
                pass
        except ProtocolBroken as error:
            self._received.clear()
            self._finish(JobEnd.PROTOCOL, str(error))

    def send(self, job: Job) -> asyncio.Future[Outcome]:
        """Send a job's request. The future has the outcome; the job was not given it yet."""
        self._job, self._outcome = job, asyncio.get_running_loop().create_future()
        if self.is_lost:
            self._finish(JobEnd.CRASH, "the I/O worker ended by itself")
        else:
            self._transport.write(line(job.request()))
        return self._outcome

    def say(self, message: bytes) -> None:
        """Send a message that has no reply."""
        if not self.is_lost:
            self._transport.write(message)

    def close(self) -> None:
        """Close the socket."""
        self._transport.abort()

    def pass_deadline(self) -> None:
        """End the job because its time is up. Later replies are ignored."""
        self._finish(JobEnd.DEADLINE, "it took too long")

    def _take_message(self) -> bool:
        """Take a blob or a line out of what was received. Return whether one was whole."""
        if self._blob_bytes:
            if len(self._received) < self._blob_bytes:
                return False
            blob = bytes(self._received[: self._blob_bytes])
            del self._received[: self._blob_bytes]
            self._blob_bytes = 0
            if self._job is not None:
                self._job.on_blob(blob)
            return True
        end = self._received.find(b"\n") + 1
        if not end:
            if len(self._received) > MAX_LINE_BYTES:
                raise ProtocolBroken("a line is too long")
            return False
        reply = parse(self._received[:end])
        del self._received[:end]
        self._take_reply(reply)
        return True

    def _take_reply(self, reply: dict[str, Any]) -> None:
        if self._job is None:
            raise ProtocolBroken("there is a reply, and no request")
        if "part" in reply:
            self._job.on_reply(reply)
        elif "blob" in reply:
            self._blob_bytes = number_in(reply, "blob", MAX_BLOB_BYTES)
        elif "error" in reply:
            self.is_unusable = reply.get("kind") == "unusable"
            self._finish(JobEnd.REFUSED, str(reply["error"]))
        elif isinstance(result := reply.get("done"), list):
            self._finish(JobEnd.DONE, "", result)
        else:
            raise ProtocolBroken("a reply is of no known kind")

    def _finish(self, end: JobEnd, detail: str, result: list[int] | None = None) -> None:
        self._job = None
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result((end, detail, result or []))

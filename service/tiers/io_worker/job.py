"""A job: what one I/O worker does at a time, and how that may end."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from service.tiers.io_worker.messages import Message, ProtocolBroken, Verb, check_scanned


class JobEnd(StrEnum):
    """How a job ended. After DONE and REFUSED the I/O worker goes on, after the others it is dead."""

    DONE = "done"
    REFUSED = "refused"
    """The store raised an error."""
    DEADLINE = "deadline"
    CRASH = "crash"
    PROTOCOL = "protocol"
    """The I/O worker sent what the protocol does not have, and was killed."""
    STOPPED = "stopped"
    """The depot ended it."""

    @property
    def is_death(self) -> bool:
        """Whether the I/O worker ended by itself or was killed for what it did."""
        return self in (JobEnd.DEADLINE, JobEnd.CRASH, JobEnd.PROTOCOL)


class Job(Protocol):
    """One request. Its methods are plain functions, which are called when something has happened.

    `seconds` is the bound: after it the I/O worker is killed.
    """

    verb: Verb
    num_parts: int
    seconds: float

    def request(self) -> Message:
        """Return the request."""

    def on_reply(self, reply: Message) -> None:
        """Take the reply for a part.

        Raises: ProtocolBroken.
        """

    def on_blob(self, blob: bytes) -> None:
        """Take some results of a scan.

        Raises: ProtocolBroken.
        """

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Take the end. Nothing touches the slots of the job any more.

        Raises: ProtocolBroken: only with DONE, if the result is wrong. Then it is called again with PROTOCOL.
        """


class SmallJob:
    """A job that has one reply, and keeps how it ended: `end` is None before that."""

    def __init__(self, request: Message, *, seconds: float, num_parts: int = 0) -> None:
        self.verb = Verb(request["verb"])
        self.num_parts = num_parts
        self.seconds = seconds
        self.end: JobEnd | None = None
        self.detail = ""
        self.blobs: list[bytes] = []
        self._request = request

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return self._request

    def on_reply(self, reply: Message) -> None:
        """Refuse the reply: see `Job`."""
        raise ProtocolBroken(f"{self.verb} has no parts")

    def on_blob(self, blob: bytes) -> None:
        """Keep a blob: see `Job`."""
        if self.verb is Verb.SCAN:
            check_scanned(blob)
        elif self.verb is not Verb.READ_NOTE or self.blobs:
            raise ProtocolBroken(f"{self.verb} has no such blobs")
        self.blobs.append(blob)

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Keep the end: see `Job`."""
        self.end, self.detail = end, detail

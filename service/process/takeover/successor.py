"""The successor's side of a takeover: asks a running depot for its memory, and waits until nobody else uses it."""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from service.process.takeover.lines import (
    MAX_LINE_BYTES,
    PROTOCOL,
    Line,
    NotUnderstood,
    decode,
    encode,
    facts_of,
    peer_of,
    printable,
)

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
RELEASE_SECONDS = 15.0  # the predecessor closes its listeners meanwhile, or ends
MAX_DESCRIPTORS = 4  # that one message may bring; the kernel closes more by itself


class CannotTakeOver(Exception):
    """The memory of another depot can't be had. That depot serves on, unless the subclass says otherwise."""


class NobodyListens(CannotTakeOver):
    """No depot offers a takeover at this path."""


class NotTrusted(CannotTakeOver):
    """Another user's process listens there."""


class Refused(CannotTakeOver):
    """The depot refuses. The message is its reason."""


class OtherProtocol(CannotTakeOver):
    """The depot speaks another version of the protocol."""


class BadAnswer(CannotTakeOver):
    """The answer can't be understood."""


class ConnectionLost(CannotTakeOver):
    """The depot closed the connection, or ended before it handed over."""


class TimedOut(CannotTakeOver):
    """The depot says nothing any more, or takes too long."""


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A descriptor, which is the caller's to close, and facts about it. Nobody else writes to what it names."""

    fd: int
    facts: dict[str, str | int]


def take_over(
    path: Path,
    timeout_seconds: float,
    *,
    software_version: str,
    report: Callable[[str], None] = lambda _: None,
    silence_seconds: float = SILENCE_SECONDS,
    release_seconds: float = RELEASE_SECONDS,
) -> TakenOver:
    """Ask the depot that listens at `path` for its memory. Block for `timeout_seconds`, and for the release after that.

    `report` gets the depot's progress. When this returns, the other depot writes nothing more to the memory, and its
    addresses are free. If the depot dies after it has sent the memory, the memory is this process's as well.

    Raises: NobodyListens, NotTrusted, Refused, OtherProtocol, BadAnswer, ConnectionLost, TimedOut.
    """
    deadline = monotonic() + timeout_seconds
    with socket.socket(socket.AF_UNIX) as connection:
        _connect(connection, path, silence_seconds)
        with _Conversation(connection, silence_seconds) as conversation:
            conversation.send(
                {"protocol": PROTOCOL, "software_version": software_version, "timeout_seconds": timeout_seconds}
            )
            line = conversation.receive(deadline)
            while "handover" not in line:
                report(printable(line.get("progress", "")))
                line = conversation.receive(deadline)
            facts = _facts(line)
            taken = TakenOver(conversation.take_descriptor(), facts)
            try:
                conversation.confirm(monotonic() + release_seconds)
            except BaseException:
                os.close(taken.fd)
                raise
            return taken


def _connect(connection: socket.socket, path: Path, seconds: float) -> None:
    connection.settimeout(seconds)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NobodyListens(f"no depot offers a takeover at {path}") from error
    except TimeoutError as error:
        raise TimedOut(f"the depot at {path} accepts no connection") from error
    except OSError as error:
        raise NobodyListens(f"{path}: {error.strerror or error}") from error
    peer = peer_of(connection)
    if not peer.is_trusted:
        raise NotTrusted(f"the process {peer.pid} of user {peer.uid} listens at {path}: neither this user nor root")


class _Conversation:
    """Lines and descriptors from a predecessor. Descriptors that nobody takes are closed at the end."""

    def __init__(self, connection: socket.socket, silence_seconds: float) -> None:
        self._socket = connection
        self._silence_seconds = silence_seconds
        self._received = b""
        self._descriptors: list[int] = []
        self._process = _open_process(peer_of(connection).pid)

    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._descriptors:
            os.close(fd)
        if self._process is not None:
            os.close(self._process)

    def send(self, line: Line) -> None:
        """Raises: ConnectionLost, TimedOut."""
        self._socket.settimeout(self._silence_seconds)
        try:
            self._socket.sendall(encode(line))
        except TimeoutError as error:
            raise TimedOut("the depot reads nothing") from error
        except OSError as error:
            # It may have said why before it closed the connection.
            with suppress(ConnectionLost, TimedOut):
                self.receive(monotonic() + self._silence_seconds)
            raise ConnectionLost(f"the depot has closed the connection: {error.strerror}") from error

    def receive(self, deadline: float) -> Line:
        """Return the next line. Keep the descriptors that come with it.

        Raises: Refused, OtherProtocol, BadAnswer, ConnectionLost, TimedOut.
        """
        silent_at = monotonic() + self._silence_seconds
        while b"\n" not in self._received:
            if len(self._received) >= MAX_LINE_BYTES:
                raise BadAnswer(f"the depot sends a line of more than {MAX_LINE_BYTES} bytes")
            self._received += self._receive_more(deadline, silent_at)
        encoded, _, self._received = self._received.partition(b"\n")
        try:
            line = decode(encoded)
        except NotUnderstood as error:
            raise BadAnswer(f"the depot's answer can't be understood: {error}") from error
        if "refused" in line:
            if line.get("protocol") != PROTOCOL:
                raise OtherProtocol(
                    f"the depot speaks another protocol of takeovers ({printable(line.get('protocol'))}), "
                    f"and this version speaks {PROTOCOL}"
                )
            raise Refused(printable(line["refused"]))
        return line

    def take_descriptor(self) -> int:
        """Return the one descriptor that has come. It is the caller's.

        Raises: BadAnswer.
        """
        if len(self._descriptors) != 1:
            raise BadAnswer(f"the depot hands over {len(self._descriptors)} descriptors instead of one")
        if not stat.S_ISREG(os.fstat(self._descriptors[0]).st_mode):
            raise BadAnswer("the depot hands over a descriptor of something that is no memory")
        return self._descriptors.pop()

    def confirm(self, deadline: float) -> None:
        """Confirm that the memory is here. Return when the predecessor has given it up, or has ended.

        Raises: BadAnswer, ConnectionLost, TimedOut, Refused, OtherProtocol.
        """
        try:
            self.send({"received": True})
            self._silence_seconds = deadline - monotonic()  # it sends no progress meanwhile
            while self.receive(deadline).get("released") is not True:
                pass
        except ConnectionLost:
            if not self._ends_before(deadline):
                raise
            logger.warning("PredecessorEnded before it released the memory, which is used as it is")

    def _receive_more(self, deadline: float, silent_at: float) -> bytes:
        now = monotonic()
        if now >= deadline:
            raise TimedOut("the depot has not handed over in time")
        if now >= silent_at:
            raise TimedOut("the depot says nothing any more")
        self._socket.settimeout(min(deadline, silent_at) - now)
        try:
            received, ancillary, _, _ = self._socket.recvmsg(
                MAX_LINE_BYTES,
                socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize),
                socket.MSG_CMSG_CLOEXEC,
            )
        except TimeoutError:
            return b""  # the next turn says which time is over
        except OSError as error:
            raise ConnectionLost(f"the connection to the depot is lost: {error.strerror}") from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._descriptors.extend(fds)
        if not received:
            raise ConnectionLost("the depot has closed the connection")
        return received

    def _ends_before(self, deadline: float) -> bool:
        """Return whether the predecessor's process has ended, or ends in time."""
        if self._process is None:
            return False
        poll = select.poll()  # takes descriptors of any number, unlike `select.select`
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - monotonic()) * 1_000))


def _open_process(pid: int) -> int | None:
    """Return a pidfd. None: the process has ended, or is in another PID namespace."""
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _facts(line: Line) -> dict[str, str | int]:
    try:
        return facts_of(line["handover"])
    except NotUnderstood as error:
        raise BadAnswer(str(error)) from error

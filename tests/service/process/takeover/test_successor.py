"""A successor gets memory that is its own alone, or an error that says why not, from whatever listens there."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.process.takeover.successor import (
    BadAnswer,
    CannotTakeOver,
    ConnectionLost,
    NobodyListens,
    OtherProtocol,
    Refused,
    TakenOver,
    TimedOut,
    take_over,
)
from tests.fakes.takeover import CONTENT, memfd, open_descriptors, raw_predecessor

TAKEN = b'{"handover": {"l1_bytes": 6000, "later": [1]}}\n'


@pytest.fixture
def fd() -> Iterator[int]:
    opened = memfd()
    yield opened
    os.close(opened)


def take(path: Path, **given: Any) -> TakenOver:
    """Take over with times that a test can wait for."""
    values: dict[str, Any] = {"timeout_seconds": 10.0, "silence_seconds": 5.0, "release_seconds": 5.0}
    return take_over(path, software_version="0.2.0", **(values | given))


def take_from(path: Path, answer: Callable[[socket.socket], None], **given: Any) -> TakenOver:
    """Take over from a predecessor that answers so. No descriptor may stay after a failure."""
    before = {each for each in open_descriptors() if "memfd" in each}
    with raw_predecessor(path, answer):
        try:
            return take(path, **given)
        except CannotTakeOver:
            assert {each for each in open_descriptors() if "memfd" in each} == before
            raise


def wait_for_end(connection: socket.socket) -> None:
    """Return when the successor has gone."""
    connection.settimeout(10.0)
    while connection.recv(999):
        pass


def test_later_fields_are_ignored(path: Path, fd: int) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b'{"progress": 1, "colour": "blue"}\n{"colour": 2}\n')
        socket.send_fds(connection, [TAKEN], [fd])
        assert json.loads(connection.recv(999)) == {"received": True}
        connection.sendall(b'{"released": false}\n{"released": true}\n')

    taken = take_from(path, answer)
    assert os.pread(taken.fd, len(CONTENT), 0) == CONTENT
    assert taken.facts == {"l1_bytes": 6000}
    os.close(taken.fd)


def test_nobody_listens(path: Path) -> None:
    with pytest.raises(NobodyListens, match="no depot offers a takeover at"):
        take(path)
    path.write_text("")
    with pytest.raises(NobodyListens):
        take(path)
    with pytest.raises(NobodyListens, match="too long"):
        take(path / ("x" * 120))


BAD_ANSWERS: dict[str, tuple[bytes, type[CannotTakeOver], str]] = {
    "refused": (b'{"refused": "why\\nnot", "protocol": 1}\n', Refused, "^why not$"),
    "another protocol": (b'{"refused": "no", "protocol": 2}\n', OtherProtocol, r"another protocol of takeovers \(2\)"),
    "no protocol": (b'{"refused": "no"}\n', OtherProtocol, "another protocol"),
    "no JSON": (b"HTTP/1.1 400 Bad Request\n", BadAnswer, "a line is no JSON"),
    "no end": (b"x" * 9_000, BadAnswer, "a line of more than 8192 bytes"),
    "no descriptor": (TAKEN, BadAnswer, "hands over 0 descriptors instead of one"),
    "no facts": (b'{"handover": []}\n', BadAnswer, "no JSON object"),
    "half a line": (b'{"progress": "x"}\n{"hand', ConnectionLost, "the depot has closed the connection"),
    "nothing": (b"", ConnectionLost, "the depot has closed the connection"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_bad_answers(path: Path, what: str) -> None:
    sent, error, message = BAD_ANSWERS[what]
    with pytest.raises(error, match=message):
        take_from(path, lambda connection: connection.sendall(sent))


@pytest.mark.parametrize("count", [2, 4, 50])
def test_more_descriptors_than_one_are_closed(path: Path, fd: int, count: int) -> None:
    with pytest.raises(BadAnswer, match="descriptors instead of one"):
        take_from(path, lambda connection: void(socket.send_fds(connection, [TAKEN], [fd] * count)))


def test_a_descriptor_that_came_too_early_is_closed(path: Path, fd: int) -> None:
    def answer(connection: socket.socket) -> None:
        socket.send_fds(connection, [b'{"progress": ""}\n'], [fd])
        socket.send_fds(connection, [TAKEN], [fd])
        wait_for_end(connection)

    with pytest.raises(BadAnswer, match="hands over 2 descriptors"):
        take_from(path, answer)


def test_a_descriptor_of_something_else_is_closed(path: Path) -> None:
    with pytest.raises(BadAnswer, match="no memory"):
        take_from(path, lambda connection: void(socket.send_fds(connection, [TAKEN], [connection.fileno()])))


def test_a_silent_depot_is_given_up(path: Path) -> None:
    with pytest.raises(TimedOut, match="says nothing any more"):
        take_from(path, wait_for_end, silence_seconds=0.1)


def test_a_line_that_comes_byte_by_byte_is_given_up(path: Path) -> None:
    def drip(connection: socket.socket) -> None:
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b" ")

    with pytest.raises(TimedOut, match="says nothing any more"):
        take_from(path, drip, silence_seconds=0.1)


def test_endless_progress_is_given_up(path: Path) -> None:
    def report(connection: socket.socket) -> None:
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b'{"progress": "soon"}\n')

    seen: list[str] = []
    with pytest.raises(TimedOut, match="has not handed over in time"):
        take_from(path, report, timeout_seconds=0.2, report=seen.append)
    assert set(seen) == {"soon"}


def test_a_living_depot_that_does_not_release_keeps_the_memory(path: Path, fd: int) -> None:
    def close(connection: socket.socket) -> None:
        socket.send_fds(connection, [TAKEN], [fd])
        connection.recv(999)

    with pytest.raises(ConnectionLost):
        take_from(path, close, release_seconds=0.1)
    path.unlink()

    def hang(connection: socket.socket) -> None:
        socket.send_fds(connection, [TAKEN], [fd])
        wait_for_end(connection)

    with pytest.raises(TimedOut):
        take_from(path, hang, release_seconds=0.1)


DYING = """
import os, socket, sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listens", flush=True)
connection, _ = listener.accept()
connection.recv(8192)
fd = os.memfd_create("l1")
os.write(fd, b"chunks")
if sys.argv[2] == "with the memory":
    socket.send_fds(connection, [b'{"handover": {}}\\n'], [fd])
if sys.argv[3] == "confirmed":
    connection.recv(999)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", ["confirmed", "at once"])
def test_a_depot_that_dies_after_it_has_sent_the_memory_leaves_it(path: Path, when: str) -> None:
    with dying(path, "with the memory", when):
        taken = take(path)
    assert os.pread(taken.fd, 6, 0) == b"chunks"
    os.close(taken.fd)


def test_a_depot_that_dies_earlier_leaves_nothing(path: Path) -> None:
    with dying(path, "without", "at once"), pytest.raises(ConnectionLost):
        take(path)


def dying(path: Path, *how: str) -> subprocess.Popen[str]:
    """Start a depot that kills itself."""
    process = subprocess.Popen([sys.executable, "-S", "-c", DYING, path, *how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "listens\n"
    return process


def void(_: object) -> None:
    """Take a value where none is wanted."""

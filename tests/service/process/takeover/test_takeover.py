"""A predecessor hands its memory to a successor, or serves on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.process.takeover.lines import MAX_LINE_BYTES, Peer, socket_beside
from service.process.takeover.listener import TakeoverListener, TakeoverRefused
from service.process.takeover.socket_file import CannotOfferTakeover
from service.process.takeover.successor import ConnectionLost, NobodyListens, Refused, TakenOver, TimedOut, take_over
from tests.fakes.takeover import CONTENT, REQUEST, FakePredecessor, RawSuccessor, memfd, open_descriptors
from tests.fakes.waiting import eventually

Serve = Callable[[FakePredecessor], TakeoverListener]
Take = Callable[..., Coroutine[Any, Any, TakenOver]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvdepot.sock.takeover"


@pytest.fixture
async def serve(path: Path) -> AsyncIterator[Serve]:
    tasks: list[asyncio.Task[None]] = []
    predecessors: list[FakePredecessor] = []

    def start(predecessor: FakePredecessor) -> TakeoverListener:
        listener = TakeoverListener(path, predecessor, received_seconds=0.2)
        predecessors.append(predecessor)
        tasks.append(asyncio.create_task(listener.run()))
        return listener

    yield start
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in ended if error is not None and not isinstance(error, asyncio.CancelledError)] == []
    for predecessor in predecessors:
        os.close(predecessor.fd)


@pytest.fixture
async def take(path: Path) -> AsyncIterator[Take]:
    taken: list[TakenOver] = []

    async def call(**given: Any) -> TakenOver:
        values: dict[str, Any] = {"timeout_seconds": 20.0, "software_version": "0.2.0"} | given
        taken.append(await asyncio.to_thread(take_over, path, **values))
        return taken[-1]

    yield call
    for each in taken:
        os.close(each.fd)


@pytest.fixture
async def connect(path: Path) -> AsyncIterator[Callable[[], RawSuccessor]]:
    successors: list[RawSuccessor] = []

    def start() -> RawSuccessor:
        successors.append(RawSuccessor(path))
        return successors[-1]

    yield start
    for each in successors:
        each.close()


async def test_the_successor_has_the_memory_and_the_facts(serve: Serve, take: Take) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    taken = await take()
    assert os.pread(taken.fd, len(CONTENT), 0) == CONTENT
    os.pwrite(predecessor.fd, b"CHUNKS", 0)
    assert os.pread(taken.fd, 6, 0) == b"CHUNKS"  # the same memory, not a copy of it
    assert taken.facts == {"l1_bytes": len(CONTENT), "epoch": "7"}
    assert not os.get_inheritable(taken.fd)


async def test_the_predecessor_lets_go_before_the_successor_starts(serve: Serve, take: Take, path: Path) -> None:
    predecessor = FakePredecessor()
    listener = serve(predecessor)
    await take()
    assert predecessor.calls == ["drain", "let go"]
    assert not is_there(path)
    successor = serve(FakePredecessor())
    await asyncio.sleep(0)
    listener.close()
    assert is_there(path)  # the predecessor, which ends later, leaves the file of the successor
    assert "waiting" in repr(successor)


async def test_the_predecessor_knows_who_asks(serve: Serve, take: Take) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    await take(software_version="9.9\n9", timeout_seconds=12.5)
    (request,) = predecessor.requests
    assert (request.pid, request.software_version, request.timeout_seconds) == (os.getpid(), "9.9 9", 12.5)


async def test_the_successor_learns_how_the_drain_goes(serve: Serve, take: Take) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    seen: list[str] = []
    taking = asyncio.create_task(take(report=seen.append))
    await eventually(lambda: "3 calls are running late" in seen)
    predecessor.finish.set()
    await taking


async def test_a_refusal_reaches_the_successor_and_the_depot_serves_on(serve: Serve, take: Take) -> None:
    predecessor = FakePredecessor(failure=TakeoverRefused("L1 is no file"))
    serve(predecessor)
    with pytest.raises(Refused, match=r"^L1 is no file$"):
        await take()
    predecessor.failure = None
    await take()
    assert predecessor.calls == ["drain", "serve on", "drain", "let go"]


async def test_a_bug_in_the_drain_is_logged_and_the_depot_serves_on(
    serve: Serve, take: Take, caplog: pytest.LogCaptureFixture
) -> None:
    predecessor = FakePredecessor(failure=TimeoutError("a bug"))
    serve(predecessor)
    with pytest.raises(Refused, match=r"^an internal error of the depot"):
        await take()
    assert "a bug" in caplog.text
    predecessor.failure = None
    await take()
    assert predecessor.calls == ["drain", "serve on", "drain", "let go"]


async def test_a_successor_that_vanishes_stops_the_drain(
    serve: Serve, take: Take, connect: Callable[[], RawSuccessor]
) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST)
    await predecessor.draining.wait()
    successor.close()
    await eventually(lambda: predecessor.calls == ["drain", "cancelled", "serve on"])
    predecessor.finish.set()
    assert os.pread((await take()).fd, 6, 0) == b"chunks"


async def test_a_successor_that_does_not_confirm_gets_nothing(
    serve: Serve, take: Take, connect: Callable[[], RawSuccessor]
) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST)
    assert await asyncio.to_thread(successor.receive) == {"handover": {"l1_bytes": len(CONTENT), "epoch": "7"}}
    late = await asyncio.to_thread(successor.receive)
    assert late == {"refused": "the successor has sent no line within 0.2 s", "protocol": 1}
    with suppress(OSError):
        successor.send({"received": True})
    await take()
    assert predecessor.calls == ["drain", "serve on", "drain", "let go"]


@pytest.mark.parametrize("line", [{"received": False}, {"received": "yes"}, {}, b"[]\n", b"\xff\n"])
async def test_what_is_no_confirmation_gets_nothing(
    serve: Serve, connect: Callable[[], RawSuccessor], line: Any
) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST)
    await asyncio.to_thread(successor.receive)
    successor.send(line)
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert "refused" in answer
    assert predecessor.calls == ["drain", "serve on"]


async def test_a_confirmation_before_the_handover_is_refused(serve: Serve, connect: Callable[[], RawSuccessor]) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    successor.send(b'{"protocol": 1, "software_version": "1", "timeout_seconds": 1}\n{"received": true}\n')
    answer = await asyncio.to_thread(successor.receive)
    assert answer == {"refused": "the successor sends lines before their turn", "protocol": 1}
    assert predecessor.calls == []


async def test_a_successor_that_speaks_while_the_depot_drains_gets_nothing(
    serve: Serve, connect: Callable[[], RawSuccessor]
) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST)
    await predecessor.draining.wait()
    successor.send({"received": True})
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert "sent something" in answer["refused"]
    assert predecessor.calls == ["drain", "cancelled", "serve on"]


async def test_a_second_successor_is_refused(serve: Serve, take: Take, connect: Callable[[], RawSuccessor]) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    first = connect()
    first.send(REQUEST)
    await predecessor.draining.wait()
    with pytest.raises(Refused, match="another successor is taking over"):
        await take()
    assert predecessor.calls == ["drain"]


async def test_a_drain_that_takes_too_long_is_stopped(serve: Serve, connect: Callable[[], RawSuccessor]) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST | {"timeout_seconds": 0.05})
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert answer["refused"] == "the drain takes more than 0.05 s: 3 calls are running late"
    assert predecessor.calls == ["drain", "cancelled", "serve on"]


async def test_a_successor_that_waits_no_longer_stops_the_drain(serve: Serve, take: Take) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    with pytest.raises((TimedOut, Refused)):
        await take(timeout_seconds=0.1)
    await eventually(lambda: predecessor.calls == ["drain", "cancelled", "serve on"])


async def test_a_failed_release_still_ends_the_predecessor(path: Path, take: Take) -> None:
    predecessor = FakePredecessor()
    predecessor.release_failure = RuntimeError("a bug")
    running = asyncio.create_task(TakeoverListener(path, predecessor).run())
    with pytest.raises(ConnectionLost):  # its process, which is this one, goes on
        await take(release_seconds=0.1)
    await running
    assert predecessor.calls == ["drain", "let go"]
    os.close(predecessor.fd)


BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"hello\n", "a line is no JSON"),
    "no object": (b"[1]\n", "a line is no JSON object"),
    "deep": (b"[" * (MAX_LINE_BYTES - 1) + b"\n", "a line is no JSON"),
    "endless": (b"x" * (MAX_LINE_BYTES + 1), f"a line has at most {MAX_LINE_BYTES} bytes"),
    "no version": ({"protocol": 1, "timeout_seconds": 1}, "software_version is missing, or no text"),
    "no time": ({"protocol": 1, "software_version": "1"}, "timeout_seconds is missing, or no number"),
    "a time that is true": (REQUEST | {"timeout_seconds": True}, "timeout_seconds is missing, or no number"),
    "no finite time": (REQUEST | {"timeout_seconds": float("nan")}, "timeout_seconds is between 0 and 3600"),
    "a past time": (REQUEST | {"timeout_seconds": 0}, "timeout_seconds is between 0 and 3600"),
    "another protocol": (REQUEST | {"protocol": 2}, "this depot speaks protocol 1 of takeovers, and not the successor"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
async def test_bad_requests_are_refused(
    serve: Serve, take: Take, connect: Callable[[], RawSuccessor], what: str
) -> None:
    sent, message = BAD_REQUESTS[what]
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    successor.send(sent)
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert answer["refused"].startswith(message)
    assert predecessor.calls == []
    await take()


async def test_unknown_fields_are_ignored(serve: Serve, connect: Callable[[], RawSuccessor]) -> None:
    serve(FakePredecessor())
    successor = connect()
    successor.send(REQUEST | {"colour": ["blue"]})
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert "handover" in answer


async def test_silent_peers_delay_a_successor_and_cost_nothing_else(
    serve: Serve, take: Take, connect: Callable[[], RawSuccessor]
) -> None:
    serve(FakePredecessor())
    for _ in range(4):
        connect().send(b"{")
    assert (await take()).facts["epoch"] == "7"


async def test_descriptors_of_a_successor_are_not_kept(serve: Serve, connect: Callable[[], RawSuccessor]) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    fd = memfd(b"unasked")
    before = open_descriptors()
    socket.send_fds(successor.socket, [b'{"protocol": 1'], [fd] * 3)
    successor.send(b', "software_version": "1", "timeout_seconds": 5}\n')
    assert await asyncio.to_thread(successor.receive) is not None
    unasked = [each for each in open_descriptors() - before if "memfd" in each]
    os.close(fd)
    assert unasked == []


async def test_only_the_user_may_open_the_socket(serve: Serve, path: Path) -> None:
    serve(FakePredecessor())
    assert is_there(path, mode=0o600)


def test_only_the_user_and_root_are_trusted() -> None:
    assert Peer(1, os.geteuid()).is_trusted
    assert Peer(1, 0).is_trusted
    assert not Peer(1, os.geteuid() + 1).is_trusted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_is_refused_even_where_it_can_open_the_socket(serve: Serve, path: Path) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    open_to_all(path)
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "print(s.recv(999))"
    )
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-I", "-S", "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert "of user 65534 is neither this user" in ran.stdout, ran.stderr
    assert predecessor.calls == []


async def test_the_file_of_a_dead_depot_is_replaced(serve: Serve, take: Take, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NobodyListens):
        await take()
    serve(FakePredecessor())
    await take()


async def test_a_live_depot_keeps_its_file(serve: Serve, take: Take, path: Path) -> None:
    serve(FakePredecessor())
    with pytest.raises(CannotOfferTakeover, match="another depot listens"):
        TakeoverListener(path, FakePredecessor())
    await take()


def test_other_files_are_left_as_they_are(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(CannotOfferTakeover, match="is no socket, and is left as it is"):
        TakeoverListener(path, FakePredecessor())
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(CannotOfferTakeover, match="is no socket"):
        TakeoverListener(path, FakePredecessor())
    assert path.is_symlink()


@pytest.mark.parametrize(("name", "why"), [("x" * 120, "at most 107 bytes"), ("no/folder", "No such file")])
def test_paths_that_no_socket_can_have(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(CannotOfferTakeover, match=why):
        TakeoverListener(tmp_path / name, FakePredecessor())


async def test_a_depot_that_stops_closes_its_socket(path: Path) -> None:
    running = asyncio.create_task(TakeoverListener(path, FakePredecessor()).run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not is_there(path)


@pytest.mark.parametrize(
    ("listen", "path"),
    [
        (["127.0.0.1:50051", "unix:/run/kv.sock", "unix:/run/other"], "/run/kv.sock.takeover"),
        (["unix:///run/kv.sock"], "/run/kv.sock.takeover"),
        (["unix:kv.sock"], "kv.sock.takeover"),
        (["127.0.0.1:50051"], None),
    ],
)
def test_the_socket_is_beside_that_of_the_depot(listen: list[str], path: str | None) -> None:
    assert socket_beside(listen) == (None if path is None else Path(path))


def is_there(path: Path, mode: int = 0o600) -> bool:
    """Return whether a socket of this mode is at a path."""
    return path.is_socket() and path.stat().st_mode & 0o777 == mode


def open_to_all(path: Path) -> None:
    """Let every user reach a socket."""
    path.chmod(0o666)
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)

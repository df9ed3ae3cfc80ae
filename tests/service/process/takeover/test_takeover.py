"""A predecessor hands its memory to a successor, or serves on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from service.process.takeover.listener import TakeoverListener, TakeoverRefused
from service.process.takeover.successor import ConnectionLost, Refused, TimedOut
from tests.fakes.takeover import CONTENT, REQUEST, FakePredecessor
from tests.fakes.waiting import eventually
from tests.service.process.takeover.conftest import Connect, Serve, Take, is_there


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


async def test_a_successor_that_vanishes_stops_the_drain(serve: Serve, take: Take, connect: Connect) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    successor = connect()
    successor.send(REQUEST)
    await predecessor.draining.wait()
    successor.close()
    await eventually(lambda: predecessor.calls == ["drain", "cancelled", "serve on"])
    predecessor.finish.set()
    assert os.pread((await take()).fd, 6, 0) == b"chunks"


async def test_a_successor_that_does_not_confirm_gets_nothing(serve: Serve, take: Take, connect: Connect) -> None:
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
async def test_what_is_no_confirmation_gets_nothing(serve: Serve, connect: Connect, line: Any) -> None:
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


async def test_a_confirmation_before_the_handover_is_refused(serve: Serve, connect: Connect) -> None:
    predecessor = FakePredecessor()
    serve(predecessor)
    successor = connect()
    successor.send(b'{"protocol": 1, "software_version": "1", "timeout_seconds": 1}\n{"received": true}\n')
    answer = await asyncio.to_thread(successor.receive)
    assert answer == {"refused": "the successor sends lines before their turn", "protocol": 1}
    assert predecessor.calls == []


async def test_a_successor_that_speaks_while_the_depot_drains_gets_nothing(serve: Serve, connect: Connect) -> None:
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


async def test_a_second_successor_is_refused(serve: Serve, take: Take, connect: Connect) -> None:
    predecessor = FakePredecessor(at_once=False)
    serve(predecessor)
    first = connect()
    first.send(REQUEST)
    await predecessor.draining.wait()
    with pytest.raises(Refused, match="another successor is taking over"):
        await take()
    assert predecessor.calls == ["drain"]


async def test_a_drain_that_takes_too_long_is_stopped(serve: Serve, connect: Connect) -> None:
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

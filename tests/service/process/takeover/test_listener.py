"""The takeover socket: who may use it, what it answers to bad requests, and what becomes of its file."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.process.takeover.lines import MAX_LINE_BYTES, Peer, socket_beside
from service.process.takeover.listener import TakeoverListener
from service.process.takeover.socket_file import CannotOfferTakeover
from service.process.takeover.successor import NobodyListens
from tests.fakes.takeover import REQUEST, FakePredecessor, memfd, open_descriptors
from tests.service.process.takeover.conftest import Connect, Serve, Take, is_there

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
async def test_bad_requests_are_refused(serve: Serve, take: Take, connect: Connect, what: str) -> None:
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


async def test_unknown_fields_are_ignored(serve: Serve, connect: Connect) -> None:
    serve(FakePredecessor())
    successor = connect()
    successor.send(REQUEST | {"colour": ["blue"]})
    answer = await asyncio.to_thread(successor.receive)
    assert answer is not None
    assert "handover" in answer


async def test_silent_peers_delay_a_successor_and_cost_nothing_else(serve: Serve, take: Take, connect: Connect) -> None:
    serve(FakePredecessor())
    for _ in range(4):
        connect().send(b"{")
    assert (await take()).facts["epoch"] == "7"


async def test_descriptors_of_a_successor_are_not_kept(serve: Serve, connect: Connect) -> None:
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


def open_to_all(path: Path) -> None:
    """Let every user reach a socket."""
    path.chmod(0o666)
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)

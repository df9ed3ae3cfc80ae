"""The lines of a takeover: what a running depot and its successor say to each other, as JSON objects, one a line.

    successor                                     predecessor
    {"protocol": 1, "software_version": "0.2.0",
     "timeout_seconds": 60.0}               ->
                                            <-    {"progress": "3 calls are running"}      every half second
                                            <-    {"handover": {"l1_bytes": 4294967296}}   with the descriptor
    {"received": true}                      ->                                             the point of no return
                                            <-    {"released": true}

Instead of its next line, a predecessor that refuses sends {"refused": "why", "protocol": 1}. Unknown fields are
ignored.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROTOCOL = 1
MAX_LINE_BYTES = 8_192
MAX_TEXT_CHARACTERS = 300
MAX_TIMEOUT_SECONDS = 3_600.0
HEARTBEAT_SECONDS = 0.5

Line = dict[str, object]
Facts = Mapping[str, str | int]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)


class NotUnderstood(Exception):
    """The other side sent something that is no line of a takeover."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, as the kernel knows it. pid 0: one of another PID namespace."""

    pid: int
    uid: int

    @property
    def is_trusted(self) -> bool:
        """Whether the process is root's or of this process's user."""
        return self.uid in (0, os.geteuid())


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeoverRequest:
    """What a successor says about itself. It waits for `timeout_seconds` at most."""

    pid: int
    software_version: str
    timeout_seconds: float


def socket_beside(listen: Sequence[str]) -> Path | None:
    """Return the path of the takeover socket: that of the first unix listener, and `.takeover`. None: there is none."""
    for address in listen:
        if address.startswith("unix:"):
            return Path(address.removeprefix("unix:").removeprefix("//") + ".takeover")
    return None


def peer_of(connection: socket.socket) -> Peer:
    """Return the process that connected, or that listens."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def encode(line: Line) -> bytes:
    """Return a line with its end.

    Raises: NotUnderstood, if it is too long.
    """
    encoded = json.dumps(line).encode() + b"\n"
    if len(encoded) > MAX_LINE_BYTES:
        raise NotUnderstood(f"a line has at most {MAX_LINE_BYTES} bytes, not {len(encoded)}")
    return encoded


def decode(encoded: bytes) -> Line:
    """Return the object of a line.

    Raises: NotUnderstood.
    """
    try:
        line = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood("a line is no JSON") from error
    if not isinstance(line, dict):
        raise NotUnderstood("a line is no JSON object")
    return line


def request_of(line: Line, peer: Peer) -> TakeoverRequest:
    """Return the request that a line holds, whose protocol is this one.

    Raises: NotUnderstood.
    """
    version, timeout_seconds = line.get("software_version"), line.get("timeout_seconds")
    if not isinstance(version, str):
        raise NotUnderstood("software_version is missing, or no text")
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float):
        raise NotUnderstood("timeout_seconds is missing, or no number")
    if not (math.isfinite(timeout_seconds) and 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS):
        raise NotUnderstood(f"timeout_seconds is between 0 and {MAX_TIMEOUT_SECONDS:g}")
    return TakeoverRequest(pid=peer.pid, software_version=printable(version), timeout_seconds=float(timeout_seconds))


def facts_of(value: object) -> dict[str, str | int]:
    """Return the texts and integers among the facts of a handover. Later versions may send more.

    Raises: NotUnderstood.
    """
    if not isinstance(value, dict):
        raise NotUnderstood("the facts of the handover are no JSON object")
    return {name: fact for name, fact in value.items() if isinstance(fact, str | int) and not isinstance(fact, bool)}


def printable(text: object) -> str:
    """Return a text of the other side as it may stand in a log: one short line."""
    return "".join(each if each.isprintable() else " " for each in str(text)[:MAX_TEXT_CHARACTERS])

"""Probes of an address: a connection, and what kind of peer answers an HTTP/2 preface. Each wait has a limit."""

from __future__ import annotations

import errno
import socket
import threading
from enum import Enum, auto
from typing import Any

from kvdepot.cli.address import Tcp
from kvdepot.cli.cause import Cause

RESOLVE_SECONDS = 2.0
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.0
MAX_ADDRESSES = 3  # of one name

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What an HTTP/2 client sends first (RFC 9113, section 3.4): a fixed text, and a SETTINGS frame without settings."""

HOW_TO_START = "start a depot with `kvdepot serve`, or name the right address with --address"
_SETTINGS_TYPE = 4  # of an HTTP/2 frame; its type is its fourth byte
_HTTP1 = (b"HTTP/", b"<")  # Python's server of metrics answers HTML without a status
_TLS_ALERT = 0x15


class Answer(Enum):
    """What came back after an HTTP/2 preface."""

    HTTP2 = auto()
    HTTP1 = auto()
    TLS = auto()
    CLOSED = auto()
    SILENCE = auto()
    OTHER = auto()


def connect(place: Tcp) -> socket.socket | Cause:
    """Return a new connection, or why there is none."""
    infos = _resolved(place)
    if isinstance(infos, Cause):
        return infos
    failure = Cause("it has no address", HOW_TO_START)
    for family, kind, protocol, _, address in infos[:MAX_ADDRESSES]:
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = _why_no_connection(place, error)
        else:
            return connection
    return failure


def preface_answer(connection: socket.socket) -> Answer:
    """Send an HTTP/2 preface over a connection, and return what kind of peer answers.

    Raises: OSError: TLS refuses the connection (ssl.SSLError).
    """
    received = b""
    try:
        connection.settimeout(ANSWER_SECONDS)
        connection.sendall(PREFACE)
        while len(received) < 9 and (piece := connection.recv(64)):
            received += piece
    except TimeoutError:
        if not received:
            return Answer.SILENCE
    except ConnectionError:
        pass  # what was received before counts
    if not received:
        return Answer.CLOSED
    if received.startswith(_HTTP1):
        return Answer.HTTP1
    if len(received) >= 2 and received[0] == _TLS_ALERT and received[1] == 3:
        return Answer.TLS
    return Answer.HTTP2 if len(received) >= 9 and received[3] == _SETTINGS_TYPE else Answer.OTHER


def why_not_grpc(answer: Answer) -> Cause | None:
    """Return what an answer to the preface means. None: the peer speaks HTTP/2, as a depot does."""
    match answer:
        case Answer.HTTP2:
            return None
        case Answer.HTTP1:
            return Cause(
                "an HTTP/1 server answers there, and no depot",
                "is this the port of the metrics? A depot serves gRPC at a port of its own, by default 50051",
            )
        case Answer.SILENCE:
            return Cause(
                "something accepts connections there and does not answer",
                "if it is a depot, it hangs or was stopped: look at its process and its log. Else name the right port",
            )
        case Answer.CLOSED:
            return Cause(
                "something accepts connections there and closes them at once",
                "is it a depot? If so, it may be ending, or a proxy in front of it has lost it: look at its log",
            )
        case _:
            return Cause("something answers there that does not speak gRPC", "name the port at which the depot listens")


def _why_no_connection(place: Tcp, error: OSError) -> Cause:
    if isinstance(error, ConnectionRefusedError):
        return Cause("no process listens at this port", HOW_TO_START)
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return Cause(
            f"{place.host} does not answer",
            "the host is down, or a firewall or a network policy drops what is sent to this port",
        )
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return Cause(f"there is no way to {place.host}: {error.strerror}", "check the address and this host's network")
    return Cause(f"no connection: {error.strerror}", HOW_TO_START)


def _resolved(place: Tcp) -> Any:
    """Return what `socket.getaddrinfo` finds, or why it finds nothing. It has no limit, so a thread waits."""
    found: list[Any] = []

    def resolve() -> None:
        try:
            found.append(socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):
            found.append(Cause(f"the name {place.host} does not resolve", "check the spelling, and this host's DNS"))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    return found[0] if found else Cause(f"the name {place.host} does not resolve in time", "check this host's DNS")

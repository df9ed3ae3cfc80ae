"""A server that answers anything: each answer is a value or an error, and never another call's."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.tiers.address.address import TierAddress
from service.tiers.store import Part, Place, Role, StoreContext, StoreError
from service.tiers.stores.resp import Connection, command
from service.tiers.stores.valkey import ValkeyStore
from service.tiers.stores.valkey_endpoint import Endpoint

PONG = b"+PONG\r\n"
SECONDS = 5.0


class ScriptedServer:
    """Answers PING, and all else with `answer`. Then it ends the connection, unless it `goes_on`.

    If it `drips`, the answer has no end, and comes byte by byte.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.answer = b""
        self.drips = False
        self.goes_on = False
        self.num_connections = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._ended.set()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            pass
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            connection, _ = self._listener.accept()
            self.num_connections += 1
            with connection, suppress(OSError):
                connection.settimeout(SECONDS)
                while received := connection.recv(1 << 16):
                    if received == command(b"PING"):
                        connection.sendall(PONG)
                    elif self.drips:
                        self._drip(connection)
                    else:
                        connection.sendall(self.answer)
                        if not self.goes_on:
                            connection.shutdown(socket.SHUT_WR)

    def _drip(self, connection: socket.socket) -> None:
        while not self._ended.wait(0.01):
            connection.sendall(b"+")


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with closing(ScriptedServer()) as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    running_server.answer, running_server.drips, running_server.goes_on = b"", False, False
    return running_server


@contextmanager
def store(server: ScriptedServer, call_seconds: float = SECONDS) -> Iterator[ValkeyStore]:
    address = TierAddress.parse(f"valkey://127.0.0.1:{server.port}")
    opened = ValkeyStore(StoreContext(address=address, role=Role.READ, l1=memoryview(b"")), call_seconds=call_seconds)
    with closing(opened):
        yield opened


def part(num_bytes: int = 16) -> Part:
    return Part(Place(b"n" * 32), memoryview(bytearray(num_bytes)), num_bytes, b"r" * 128)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "400"),
        (b"$144", "closed the connection"),
        (b"$many\r\n", "in place of a number"),
        (b"$144\r\n" + b"r" * 100, "closed the connection"),
        (b"$144\r\n" + b"r" * 144 + b"xx", "without an end"),
        (b"+OK\r\n", "OK"),
        (b"*1\r\n$1\r\nx\r\n", "answered a GET"),
        (b"x" * 100_000, "without an end"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "LOADING"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "MISCONF"),
        (b"-MOVED nonsense\r\n", "redirects to no address"),
        (b"-MOVED 1 127.0.0.1:1\r\n", "cluster=true"),
        (b"-\xff\xfe\r\n", "127.0.0.1"),
    ],
)
def test_an_answer_that_is_no_value_is_an_error(server: ScriptedServer, answer: bytes, says: str) -> None:
    server.answer = answer
    with store(server) as opened, pytest.raises(StoreError, match=says):
        list(opened.read_into([part()]))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"$1000000000\r\n", "answered with 1000000000 bytes"),
        (b"*1000000000\r\n", "answered with 1000000000 elements"),
        (b"*1\r\n" * 50, "does not speak RESP"),
        (b"!\r\n", "does not speak RESP"),
        (b":1x\r\n", "in place of a number"),
        (b"*2\r\n:1\r\n", "closed the connection"),
    ],
)
def test_a_reply_that_is_too_large_or_malformed_ends_the_connection(
    server: ScriptedServer, answer: bytes, says: str
) -> None:
    server.answer = answer
    before = server.num_connections
    with store(server) as opened:
        with pytest.raises(StoreError, match=says):
            opened.exists([b"a"])
        server.answer = b":1\r\n"
        assert list(opened.exists([b"a"])) == [True]
    assert server.num_connections == before + 2


def test_any_bytes_are_a_value_or_an_error(server: ScriptedServer) -> None:
    @settings(max_examples=150)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [b"\r\n", b"$", b"*", b":", b"-", b"+", b"144", b"-1", b"OOM ", b"ASK 1 a:1", b"r" * 144]
                ),
            ),
            max_size=8,
        ).map(b"".join)
    )
    @example(b"$144\r\n" + b"r" * 144 + b"\r\n")
    @example(b"$-1\r\n")
    def try_it(answer: bytes) -> None:
        server.answer = answer
        with store(server) as opened:
            with suppress(StoreError):
                assert list(opened.read_into([part()])) in ([(0, b"r" * 128)], [(0, None)])
            with suppress(StoreError):
                assert list(opened.exists([b"a"])) in ([False], [True])
            with suppress(StoreError):
                [(number, _)] = opened.write_from([part()])
                assert number == 0

    try_it()


def test_a_server_that_drips_has_no_more_time_than_one_that_is_silent(server: ScriptedServer) -> None:
    server.drips = True
    with store(server, call_seconds=0.1) as opened, pytest.raises(StoreError, match="in time"):
        opened.exists([b"a"])


def test_a_call_never_gets_the_replies_of_one_that_was_left(server: ScriptedServer) -> None:
    server.answer, server.goes_on = b"+first\r\n+second\r\n", True
    connection = Connection(Endpoint(host="127.0.0.1", port=server.port))
    with closing(connection):
        left = _one_reply(connection)
        assert next(left) == b"first"
        server.answer = b"+third\r\n"
        with connection.call(time.monotonic() + SECONDS):
            connection.send(b"x")
            left.close()
            assert connection.reply() == b"third"


def _one_reply(connection: Connection) -> Generator[object, None, None]:
    with connection.call(time.monotonic() + SECONDS):
        connection.send(b"x")
        yield connection.reply()

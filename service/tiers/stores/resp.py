"""A connection to a Valkey or Redis server: RESP2, blocking, with one deadline for each call.

Values are large, so they are never joined or copied: what is sent goes out of the caller's buffers, and what is
received goes into them. https://valkey.io/topics/protocol has the protocol.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from service.tiers.store import StoreError, StoreFull, StoreUnusable
from service.tiers.stores.valkey_endpoint import Endpoint

RECEIVE_BYTES = 64 << 10
MAX_BUFFERS = 512
"""In one system call; the kernel takes up to 1,024."""
MAX_LINE_BYTES = 64 << 10
MAX_BULK_BYTES = 1 << 20
"""Of a reply that is not received into a buffer of the caller's."""
MAX_ELEMENTS = 1 << 16
MAX_DEPTH = 8

_REFUSED = {"NOAUTH", "WRONGPASS", "NOPERM"}
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

Buffer = bytes | memoryview
Reply = bytes | int | None | StoreError | list["Reply"]


class ErrorReply(StoreError):
    """The server answered with an error. `code` is its first word."""

    def __init__(self, server: object, line: str) -> None:
        super().__init__(f"{server}: {line}")
        self.code = line.partition(" ")[0]


class Redirected(ErrorReply):
    """Another node of the cluster has the key. `is_once`: only for this command, while the slot moves."""

    def __init__(self, server: object, line: str) -> None:
        super().__init__(server, line)
        host, _, port = line.rpartition(" ")[2].rpartition(":")
        self.host, self.port = host, int(port)
        self.is_once = self.code == "ASK"


def command(*arguments: bytes) -> bytes:
    """Return a command as the server reads it."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def set_command(key: bytes, head: bytes, data: memoryview) -> list[Buffer]:
    """Return a SET whose value is `head` and then `data`, which is not copied."""
    length = len(head) + len(data)
    return [b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (len(key), key, length, head), data, b"\r\n"]


class Connection:
    """A connection that is made when a call needs it, and again after an error. One thread uses it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))
        self._give_up_at = 0.0
        self._is_in_call = False
        self._num_calls = 0

    @contextmanager
    def call(self, give_up_at: float) -> Iterator[None]:
        """Bound all that the block sends and receives, and the connecting, by a time of the monotonic clock.

        The connection ends if the block fails, or is left with replies still to come: no later call may get them.

        Raises: StoreError.
        """
        if self._is_in_call:
            self.close()
        self._is_in_call = True
        self._num_calls += 1
        number = self._num_calls
        self._give_up_at = give_up_at
        try:
            self._connect()
            yield
        except BaseException:
            if number == self._num_calls:
                self.close()
            raise
        self._is_in_call = False

    def close(self) -> None:
        """End the connection. The next call makes another one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received.clear()
        self._is_in_call = False

    def send(self, *buffers: Buffer) -> None:
        """Send buffers, one after the other."""
        waiting = deque(memoryview(buffer) for buffer in buffers)
        while waiting:
            with self._named_errors() as sock:
                # A TLS socket has no sendmsg.
                some = list(islice(waiting, MAX_BUFFERS))
                sent = sock.send(some[0]) if isinstance(sock, ssl.SSLSocket) else sock.sendmsg(some)
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if sent:
                waiting[0] = waiting[0][sent:]

    def reply(self, depth: int = 0) -> Reply:
        """Return the next reply: a text, a number, a list, None or an error.

        Raises: StoreError: it is malformed, or too large.
        """
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return self._error(rest)
        if kind == b":":
            return _integer(rest)
        if kind == b"$":
            length = _integer(rest)
            if length > MAX_BULK_BYTES:
                raise StoreError(f"{self.endpoint} answered with {length} bytes")
            return None if length < 0 else self._bulk(length)
        if kind == b"*" and depth < MAX_DEPTH:
            count = _integer(rest)
            if count > MAX_ELEMENTS:
                raise StoreError(f"{self.endpoint} answered with {count} elements")
            return None if count < 0 else [self.reply(depth + 1) for _ in range(count)]
        raise StoreError(f"{self.endpoint} does not speak RESP: it sent {line[:40]!r}")

    def value_length(self) -> int | StoreError | None:
        """Return how many bytes the value of the next reply has, or its error. None: there is no value.

        The caller receives or skips the value, and then calls `end_value`.
        """
        line = self._line()
        if line[:1] == b"$":
            length = _integer(line[1:])
            return None if length < 0 else length
        if line[:1] == b"-":
            return self._error(line[1:])
        raise StoreError(f"{self.endpoint} answered a GET with {line[:40]!r}")

    def receive_into(self, view: memoryview) -> None:
        """Receive as many bytes as `view` has."""
        buffered = min(len(view), len(self._received))
        if buffered:
            view[:buffered] = self._received[:buffered]
            del self._received[:buffered]
        view = view[buffered:]
        while len(view):
            view = view[self._receive(view) :]

    def skip(self, num_bytes: int) -> None:
        """Receive bytes, and forget them."""
        while num_bytes:
            some = self._scratch[:num_bytes]
            self.receive_into(some)
            num_bytes -= len(some)

    def end_value(self) -> None:
        """Receive what ends a value."""
        if self._bulk(0):
            raise StoreError(f"{self.endpoint} sent a value without an end")

    def _error(self, text: bytes) -> StoreError:
        line = text.decode(errors="replace")
        code = line.partition(" ")[0]
        if code == "OOM":
            return StoreFull(f"{self.endpoint}: {line}")
        if code in _REFUSED:
            return StoreUnusable(f"{self.endpoint}: {line}")
        if code in ("MOVED", "ASK"):
            try:
                return Redirected(self.endpoint, line)
            except ValueError:
                return StoreError(f"{self.endpoint} redirects to no address: {line[:80]}")
        return ErrorReply(self.endpoint, line)

    def _bulk(self, length: int) -> bytes:
        found = bytearray(length + 2)
        self.receive_into(memoryview(found))
        if not found.endswith(b"\r\n"):
            raise StoreError(f"{self.endpoint} sent a value without an end")
        return bytes(found[:-2])

    def _line(self) -> bytes:
        searched = 0
        while (end := self._received.find(b"\r\n", searched)) < 0:
            searched = max(len(self._received) - 1, 0)
            if searched > MAX_LINE_BYTES:
                raise StoreError(f"{self.endpoint} does not speak RESP: it sent a line without an end")
            self._received += self._scratch[: self._receive(self._scratch)]
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        return line

    def _receive(self, view: memoryview) -> int:
        """Receive some bytes, and return how many."""
        with self._named_errors() as sock:
            count = sock.recv_into(view)
        if not count:
            raise StoreError(f"{self.endpoint} closed the connection")
        return count

    @contextmanager
    def _named_errors(self) -> Iterator[socket.socket]:
        """Let one operation of the socket take as long as the call may take yet. Say of which server an error is."""
        assert self._socket is not None, "outside of a call"
        try:
            self._socket.settimeout(self._seconds_left())
            yield self._socket
        except TimeoutError as error:
            raise StoreError(f"{self.endpoint} did not answer in time") from error
        except OSError as error:
            raise StoreError(f"{self.endpoint}: {error}") from error

    def _seconds_left(self) -> float:
        seconds = self._give_up_at - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def _connect(self) -> None:
        if self._socket is not None and not _is_silent(self._socket):
            self.close()  # the server closed it while it was idle
        if self._socket is not None:
            return
        address = (self.endpoint.host, self.endpoint.port)
        try:
            self._socket = socket.create_connection(address, timeout=self._seconds_left())
        except TimeoutError as error:
            raise StoreError(f"{self.endpoint} did not accept a connection in time") from error
        except OSError as error:
            raise StoreError(f"{self.endpoint}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, number in _KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, number)
        if self.endpoint.tls is not None:
            with self._named_errors() as sock:
                self._socket = _encrypted(sock, self.endpoint, self.endpoint.tls)
        commands = self.endpoint.greeting()
        self.send(*(command(*each) for each in commands))
        for answer in [self.reply() for _ in commands]:
            if isinstance(answer, ErrorReply) and answer.code == "ERR":  # of AUTH or SELECT: they name the reason
                raise StoreUnusable(f"{self.endpoint}: {answer}")
            if isinstance(answer, StoreError):
                raise answer


def _encrypted(sock: socket.socket, endpoint: Endpoint, tls: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        return tls.wrap_socket(sock, server_hostname=endpoint.host)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise
    except ssl.SSLError as error:
        raise StoreUnusable(f"{endpoint}: no TLS connection: {error}") from error


def _is_silent(sock: socket.socket) -> bool:
    """Return whether there is nothing to receive, not even the end of the connection."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _integer(digits: bytes) -> int:
    try:
        return int(digits)
    except ValueError:
        raise StoreError(f"a reply has {digits[:40]!r} in place of a number") from None

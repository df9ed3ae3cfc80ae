"""Chunks in a Valkey or Redis server, or in a cluster of them: a value is a record and then the chunk's bytes."""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

from service.tiers.address.address import DEFAULT_PORTS
from service.tiers.record import RECORD_BYTES
from service.tiers.store import Capabilities, Part, Place, Role, StoreContext, StoreError, StoreFull, StoreUnusable
from service.tiers.stores.resp import (
    Buffer,
    Connection,
    ErrorReply,
    Redirected,
    Reply,
    command,
    set_command,
)
from service.tiers.stores.valkey_endpoint import Endpoint
from service.tiers.stores.valkey_nodes import Cluster, Nodes, OneServer

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 512 << 20
AHEAD_BYTES = 8 << 20
"""What a server may have to answer at a time. It keeps the answers in its memory until they are received."""
MAX_REDIRECTIONS = 3
CALL_SECONDS = {Role.ASK: 0.4, Role.READ: 1.8, Role.WRITE: 4.5, Role.OWN: 4.5}
"""Less than an I/O worker of the role may take: an error costs less than a new I/O worker."""
OPEN_SECONDS = 4.0
GOOD_POLICIES = ("allkeys-lru", "allkeys-lfu")

Head = TypeVar("Head")


class _Request(NamedTuple):
    """A command for one key. `num_bytes` is the size of the value that is sent or answered."""

    key: bytes
    buffers: Sequence[Buffer]
    num_bytes: int = 0


class ValkeyStore:
    """A server, or a cluster. Connections are made when they are needed, and kept."""

    capabilities = Capabilities()

    def __init__(self, context: StoreContext, *, call_seconds: float | None = None) -> None:
        """Connect, so that a wrong address or password is known now.

        Raises: StoreError.
        """
        options = context.address.options
        self._prefix = str(options["prefix"]).encode()
        self._call_seconds = call_seconds or CALL_SECONDS[context.role]
        self._nodes = _nodes(context)
        give_up_at = time.monotonic() + (call_seconds or OPEN_SECONDS)
        connection = self._nodes.of(self._prefix, give_up_at)
        with connection.call(give_up_at):
            if context.role is Role.WRITE:
                _warn_of_policy(connection)

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        """Return for each name whether the server has a value."""
        keys = [self._key(name) for name in names]
        found = [False] * len(names)
        requests = [_Request(key, [command(b"EXISTS", key)]) for key in keys]
        for number, _, reply in self._answers(requests, Connection.reply):
            found[number] = reply == 1
        return found

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        """Receive values into slots. The server answers some of them ahead."""
        keys = [self._key(part.place.name) for part in parts]
        requests = [
            _Request(key, [command(b"GET", key)], part.chunk_bytes) for key, part in zip(keys, parts, strict=True)
        ]
        record = memoryview(bytearray(RECORD_BYTES))
        for number, connection, length in self._answers(requests, Connection.value_length):
            data = parts[number].data
            if not isinstance(length, int):
                yield number, None
            elif length != RECORD_BYTES + len(data):
                connection.skip(length)
                connection.end_value()
                yield number, None
            else:
                connection.receive_into(record)
                connection.receive_into(data)
                connection.end_value()
                yield number, bytes(record)

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        """Send values out of slots."""
        requests = []
        numbers = []
        for number, part in enumerate(parts):
            if RECORD_BYTES + part.chunk_bytes > MAX_VALUE_BYTES:
                yield number, StoreFull(f"a value has at most {MAX_VALUE_BYTES} bytes")
                continue
            key = self._key(part.place.name)
            requests.append(_Request(key, set_command(key, part.record, part.data), part.chunk_bytes))
            numbers.append(number)
        for index, _, reply in self._answers(requests, Connection.reply, tolerated=StoreFull):
            yield numbers[index], reply if isinstance(reply, StoreError) else None

    def delete(self, places: Sequence[Place]) -> None:
        """Unlink values. The server frees them later."""
        keys = [self._key(place.name) for place in places]
        for _ in self._answers([_Request(key, [command(b"UNLINK", key)]) for key in keys], Connection.reply):
            pass

    def scan(self) -> Iterator[tuple[Place, bytes]]:
        """Find nothing: other depots write to the server as well, so it is asked."""
        return iter(())

    def close(self) -> None:
        """End the connections."""
        for connection in self._nodes.all():
            connection.close()

    def _key(self, name: bytes) -> bytes:
        return self._prefix + name.hex().encode()

    def _answers(
        self,
        requests: Sequence[_Request],
        receive: Callable[[Connection], Head],
        tolerated: type[StoreError] | tuple[()] = (),
    ) -> Iterator[tuple[int, Connection, Head]]:
        """Send requests and yield, for each, its number and what `receive` finds at the beginning of its answer.

        The caller receives the rest of the answer before it goes on. Redirections are followed. All other errors but
        the `tolerated` are raised.
        """
        give_up_at = time.monotonic() + self._call_seconds
        try:
            waiting: dict[Connection, list[int]] = {}
            for number, request in enumerate(requests):
                waiting.setdefault(self._nodes.of(request.key, give_up_at), []).append(number)
            asking: set[int] = set()
            for _ in range(1 + MAX_REDIRECTIONS):
                redirected: dict[Connection, list[int]] = {}
                for connection, numbers in waiting.items():
                    with connection.call(give_up_at):
                        for number in _sent_ahead(connection, requests, numbers, asking):
                            head = receive(connection)
                            if isinstance(head, Redirected):
                                redirected.setdefault(self._nodes.follow(head), []).append(number)
                                asking = asking | {number} if head.is_once else asking - {number}
                            elif isinstance(head, StoreError) and not isinstance(head, tolerated):
                                raise head
                            else:
                                yield number, connection, head
                waiting = redirected
            if waiting:
                raise StoreError(f"the cluster redirected a command more than {MAX_REDIRECTIONS} times")
        except StoreError:
            self._nodes.doubt()
            raise


def _sent_ahead(
    connection: Connection, requests: Sequence[_Request], numbers: Sequence[int], asking: set[int]
) -> Iterator[int]:
    """Send requests, some ahead of their answers. Yield the number of each whose answer comes next.

    The first one of `asking` commands that a node of a cluster accepts it for a slot that it does not have yet.
    """
    unsent, unanswered = deque(numbers), deque[int]()
    ahead_bytes = 0
    while unsent or unanswered:
        buffers: list[Buffer] = []
        while unsent and (len(unanswered) < 2 or ahead_bytes + requests[unsent[0]].num_bytes <= AHEAD_BYTES):
            number = unsent.popleft()
            buffers += [command(b"ASKING")] if number in asking else []
            buffers += requests[number].buffers
            ahead_bytes += requests[number].num_bytes
            unanswered.append(number)
        if buffers:
            connection.send(*_joined(buffers))
        number = unanswered.popleft()
        ahead_bytes -= requests[number].num_bytes
        if number in asking:
            _raise_errors(connection.reply())
        yield number


def _joined(buffers: Sequence[Buffer]) -> Iterator[Buffer]:
    """Join what is next to each other and small: a thousand questions are one buffer."""
    for is_small, some in groupby(buffers, key=lambda buffer: isinstance(buffer, bytes)):
        if is_small:
            yield b"".join(some)
        else:
            yield from some


def _raise_errors(reply: Reply) -> None:
    if isinstance(reply, StoreError):
        raise reply


def _nodes(context: StoreContext) -> Nodes:
    address, options = context.address, context.address.options
    endpoint = Endpoint(
        host=address.host,
        port=address.port or DEFAULT_PORTS[address.kind],
        database=int(address.path.strip("/") or 0),
        user=options.get("user", ""),
        password_file=options.get("password_file", ""),
        tls=_tls(context) if address.kind in ("valkeys", "rediss") else None,
    )
    return Cluster(endpoint) if options.get("cluster") else OneServer(endpoint)


def _tls(context: StoreContext) -> ssl.SSLContext:
    options = context.address.options
    try:
        tls = ssl.create_default_context(cafile=options.get("ca_file"))
        if cert_file := options.get("cert_file"):
            tls.load_cert_chain(cert_file, options.get("key_file"))
    except OSError as error:  # ssl.SSLError is one
        raise StoreUnusable(f"ca_file, cert_file, key_file: {error}") from error
    return tls


def _warn_of_policy(connection: Connection) -> None:
    """Warn if the server refuses chunks once it is full. Servers may forbid the question."""
    connection.send(command(b"CONFIG", b"GET", b"maxmemory-policy"))
    reply = connection.reply()
    if isinstance(reply, ErrorReply | StoreUnusable):
        return
    _raise_errors(reply)
    match reply:
        case [bytes(), bytes(policy)] if policy.decode() not in GOOD_POLICIES:
            logger.warning(
                "%s has maxmemory-policy %s: use %s, or a full server refuses chunks",
                connection.endpoint,
                policy.decode(),
                " or ".join(GOOD_POLICIES),
            )

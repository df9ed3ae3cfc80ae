"""Chunks in Mooncake Store: memory that nodes lend, and a master that knows what is where.

A chunk is one value, its record and its bytes, so that one read verifies itself. The worker with the role OWN lends the
segment of this node. All others lend nothing, so that one of them can be killed and no chunk is lost.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from service.tiers.record import RECORD_BYTES
from service.tiers.store import (
    Capabilities,
    Part,
    Place,
    Role,
    StoreContext,
    StoreError,
    StoreFull,
    StoreUnusable,
)

CONNECT_SECONDS = 0.5
MAX_CALL_PARTS = 512
MAX_CALL_BYTES = 16 << 20
"""What one call of the client moves. It has no result before all of it is there."""

_ENVIRONMENT = {
    "MC_RPC_TIMEOUT_MS": "500",
    "MC_RPC_CONNECT_TIMEOUT_MS": "300",
    "MC_STORE_CLIENT_SETUP_RETRIES": "1",
    "MC_TCP_STATUS_TIMEOUT_SEC": "1",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "1",
    "MC_STORE_CLIENT_METRIC": "0",
    "MC_LOG_LEVEL": "ERROR",
    "GLOG_minloglevel": "2",
}
"""What the client reads when it is imported, unless the operator sets it.

Without these, a call waits up to 90 seconds for a master that is not there, and 30 for a node that halts in a transfer.
"""

# From Mooncake's mooncake-store/include/types.h.
_NO_SPACE = -200
_WRONG_SIZE = -600
_TRANSFER_FAILED = -800
_CONNECTION_LOST = -900
_RPC_FAILED = range(-999, -899)
_NOT_READY = -703
_ABSENT = {-704, _NOT_READY, -710, -712}
"""Not there, not whole yet, or with no copy that is left."""


class MooncakeStore:
    """A client of Mooncake Store.

    Raises: StoreError: no master answers. StoreUnusable: the package or a library that it needs is missing.
    """

    capabilities = Capabilities(needs_owner=True)

    def __init__(self, context: StoreContext) -> None:
        self._client = _imported_client()
        options = context.address.options
        self._master = (context.address.host, context.address.port)
        local_host = options.get("local_host") or self._address_of_this_node()
        segment_bytes = options["segment"] if context.role is Role.OWN else 0
        self._protocol = options["protocol"]
        code = self._client.setup(
            _bracketed(local_host),
            "P2PHANDSHAKE",
            segment_bytes,
            0,  # a buffer for calls that this store does not make
            self._protocol,
            options.get("device") or "",
            self._master_name,
        )
        if code != 0:
            raise self._error("can't be used", code)
        self._records = memoryview(mmap.mmap(-1, MAX_CALL_PARTS * RECORD_BYTES))
        self._is_doubtful = False
        self._is_owner = context.role is Role.OWN
        if context.role in (Role.READ, Role.WRITE):
            self._register(context.l1)
        if context.role is not Role.OWN:
            for memory in filter(None, (context.notes, self._records)):
                self._register(memory)

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        """Return for each name whether the master knows a chunk. Its node may be gone since a few seconds."""
        if not names:
            return []
        codes = self._call("batch_is_exist", [_key(name) for name in names])
        return [code == 1 for code in codes]

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        """Read chunks, about 16 MiB in each call."""
        for numbers in _calls(parts):
            group = [parts[number] for number in numbers]
            codes = self._call("batch_get_into_multi_buffers", *self._values(group))
            failed = 0
            for index, (number, part, code) in enumerate(zip(numbers, group, codes, strict=True)):
                if code == RECORD_BYTES + part.chunk_bytes:
                    yield number, bytes(self._record(index))
                elif self._is_absent(part, code):
                    yield number, None
                else:
                    failed = code
            if failed == _TRANSFER_FAILED and self._protocol != "tcp":
                # The network card may still write into the slots. It stops when this process is dead.
                os._exit(1)
            if failed:
                raise self._error("could not read a chunk", failed)

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        """Write chunks, about 16 MiB in each call.

        The client keeps a value that is there, or that another one began, and says that it wrote. So a value that is
        there is removed first. A master that halts would carry out a removal later, so it is asked something before.
        """
        parts = list(parts)
        for numbers in _calls(parts):
            names = [parts[number].place.name for number in numbers]
            self.exists(names)
            begun = {number for number, code in zip(numbers, self._remove(names), strict=True) if code == _NOT_READY}
            for number in begun:
                yield number, StoreError("another writer began this chunk. If it died, the master waits for it a while")
            free = [number for number in numbers if number not in begun]
            codes = self._put([parts[number] for number in free]) if free else []
            for number, code in zip(free, codes, strict=True):
                yield number, None if code == 0 else self._error("could not write a chunk", code)

    def delete(self, places: Sequence[Place]) -> None:
        """Delete chunks, also those that someone reads."""
        for begin in range(0, len(places), MAX_CALL_PARTS):
            self._remove([place.name for place in places[begin : begin + MAX_CALL_PARTS]])

    def scan(self) -> Iterable[tuple[Place, bytes]]:
        """Return nothing: other depots write to this store."""
        return ()

    def close(self) -> None:
        """Leave the cluster, if this worker lends memory. The chunks in it are gone then.

        To leave takes a second or two. A client that lends nothing may end without it.
        """
        if self._is_owner:
            self._client.close()

    def _values(self, parts: Sequence[Part]) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Return keys, addresses and lengths: the record of each part, then its bytes."""
        records = _address(self._records)
        return (
            [_key(part.place.name) for part in parts],
            [[records + index * RECORD_BYTES, _address(part.data)] for index, part in enumerate(parts)],
            [[RECORD_BYTES, part.chunk_bytes] for part in parts],
        )

    def _record(self, index: int) -> memoryview:
        return self._records[index * RECORD_BYTES : (index + 1) * RECORD_BYTES]

    def _is_absent(self, part: Part, code: int) -> bool:
        """Return whether the store has no chunk of this length. The code of a wrong length has other reasons, too."""
        if code not in (_WRONG_SIZE, _TRANSFER_FAILED):
            return code in _ABSENT
        size_bytes = self._client.get_size(_key(part.place.name))
        return size_bytes in _ABSENT or (size_bytes >= 0 and size_bytes != RECORD_BYTES + part.chunk_bytes)

    def _put(self, parts: Sequence[Part]) -> Sequence[int]:
        for index, part in enumerate(parts):
            self._record(index)[:] = part.record
        return self._call("batch_put_from_multi_buffers", *self._values(parts))

    def _remove(self, names: Sequence[bytes]) -> Sequence[int]:
        """Remove values, also those that someone reads. Return a code for each, of which all mean that it is absent."""
        codes = self._call("batch_remove", [_key(name) for name in names], True)
        if failed := [code for code in codes if code != 0 and code not in _ABSENT]:
            raise self._error("could not delete a chunk", failed[0])
        return codes

    def _call(self, name: str, *arguments: object) -> Sequence[int]:
        """Return the codes of a call that reached the master. A call whose connection was lost is made again once.

        A call takes 4.4 seconds while nothing listens at the master's port. So after a failure a connection of our own
        finds out first.
        """
        for is_last in (self._is_doubtful, True):
            if self._is_doubtful:
                self._connect().close()
            codes: Sequence[int] = getattr(self._client, name)(*arguments)
            self._is_doubtful = bool(codes) and codes[0] in _RPC_FAILED
            if is_last or not codes or codes[0] != _CONNECTION_LOST:
                break
        if self._is_doubtful:
            raise self._error("does not answer", codes[0])
        return codes

    def _register(self, memory: memoryview) -> None:
        code = self._client.register_buffer(_address(memory), memory.nbytes)
        if code != 0:
            raise self._error(f"can't use {memory.nbytes} bytes of this node's memory", code)

    def _connect(self) -> socket.socket:
        try:
            return socket.create_connection(self._master, CONNECT_SECONDS)
        except OSError as error:
            raise StoreError(f"no Mooncake master at {self._master_name}: {error.strerror or error}") from error

    def _address_of_this_node(self) -> str:
        """Return the address from which this node reaches the master, which other nodes reach it at."""
        with self._connect() as connection:
            address: str = connection.getsockname()[0]
            return address

    @property
    def _master_name(self) -> str:
        return f"{_bracketed(self._master[0])}:{self._master[1]}"

    def _error(self, what: str, code: int) -> StoreError:
        if code == _NO_SPACE:
            return StoreFull(f"Mooncake at {self._master_name} has no space for a chunk, or no node lends memory")
        return StoreError(f"Mooncake at {self._master_name} {what}: error {code} of mooncake-store/include/types.h")


def _imported_client() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mooncake.store import MooncakeDistributedStore
    except ModuleNotFoundError as error:
        raise StoreUnusable("the package of Mooncake is missing: install kvdepot[mooncake]") from error
    except ImportError as error:
        packages = "libibverbs1, libnl-3-200, libnl-route-3-200 and libnuma1"
        raise StoreUnusable(f"Mooncake does not load: {error}. Install {packages}") from error
    return MooncakeDistributedStore()


def _calls(parts: Sequence[Part]) -> Iterator[list[int]]:
    """Yield the numbers of the parts that one call moves."""
    numbers: list[int] = []
    num_bytes = 0
    for number, part in enumerate(parts):
        if numbers and (num_bytes + part.chunk_bytes > MAX_CALL_BYTES or len(numbers) == MAX_CALL_PARTS):
            yield numbers
            numbers, num_bytes = [], 0
        numbers.append(number)
        num_bytes += part.chunk_bytes
    if numbers:
        yield numbers


def _key(name: bytes) -> str:
    return f"kvdepot/{name.hex()}"


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

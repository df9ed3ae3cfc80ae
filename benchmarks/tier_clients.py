"""The bare clients of the tiers: what moves values between a server or a disk and memory, and does nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from service.tiers.address.address import TierAddress
from service.tiers.store import Role
from service.tiers.stores import disk, s3
from service.tiers.stores.s3_bucket import open_bucket

Slots = Sequence[memoryview]
AHEAD_BYTES = 8 << 20
"""What a client asks Valkey for before the first of it has arrived. More is not faster."""
MOONCAKE_CALL_BYTES = 16 << 20
NUM_CLIENTS = 2
"""As many as a tier has I/O workers that read, and that write."""


class BareClient(Protocol):
    """A client that keeps the n-th slot as the n-th value."""

    name: str

    def write(self, slots: Slots) -> None:
        """Write all slots."""

    def read(self, slots: Slots) -> None:
        """Read the values back into slots of the same sizes."""

    def ask(self, num_names: int) -> float:
        """Return the seconds in which the server answers which of so many names it has: none."""

    def close(self) -> None:
        """Let go of the server."""


class BareClients:
    """Clients that move parts of the slots at the same time, each in a thread. `connect` makes the n-th one."""

    def __init__(self, connect: Callable[[int], BareClient]) -> None:
        self._clients = [connect(number) for number in range(NUM_CLIENTS)]
        self._threads = ThreadPoolExecutor(NUM_CLIENTS)
        self.name = f"{NUM_CLIENTS} × {self._clients[0].name}"

    def write(self, slots: Slots) -> None:
        """Write all slots."""
        self._each(lambda client, some: client.write(some), slots)

    def read(self, slots: Slots) -> None:
        """Read into slots."""
        self._each(lambda client, some: client.read(some), slots)

    def ask(self, num_names: int) -> float:
        """Ask through one client."""
        return self._clients[0].ask(num_names)

    def close(self) -> None:
        """Close all clients."""
        self._threads.shutdown()
        for client in self._clients:
            client.close()

    def _each(self, move: Callable[[BareClient, Slots], None], slots: Slots) -> None:
        parts = [slots[number::NUM_CLIENTS] for number in range(NUM_CLIENTS)]
        list(self._threads.map(move, self._clients, parts))


class BareDisk:
    """Threads that read and write a file past the page cache."""

    name = f"bare O_DIRECT, {disk.NUM_THREADS} threads"

    def __init__(self, folder: Path, num_bytes: int, number: int = 0) -> None:
        path = folder / f"bare {number}"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        os.posix_fallocate(self._fd, 0, num_bytes)
        self._threads = ThreadPoolExecutor(disk.NUM_THREADS)

    def write(self, slots: Slots) -> None:
        """Write all slots."""
        self._each(os.pwritev, slots)

    def read(self, slots: Slots) -> None:
        """Read into slots."""
        self._each(os.preadv, slots)

    def ask(self, num_names: int) -> float:
        """Take no time: the depot knows what its disk has."""
        return 0.0

    def close(self) -> None:
        """Close the file."""
        self._threads.shutdown()
        os.close(self._fd)

    def _each(self, call: Callable[[int, list[memoryview], int], int], slots: Slots) -> None:
        def move(number: int) -> None:
            slot = slots[number]
            moved = call(self._fd, [slot], number * len(slot))
            assert moved == len(slot), "a part was moved"

        list(self._threads.map(move, range(len(slots))))


class BareValkey:
    """One connection. It sends commands ahead and verifies nothing."""

    name = "bare RESP connection"

    def __init__(self, address: TierAddress, number: int = 0) -> None:
        self._number = number
        self._socket = socket.create_connection((address.host, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb", buffering=0)

    def write(self, slots: Slots) -> None:
        """Send all values, then receive the answers."""
        for number, slot in enumerate(slots):
            key = b"bare%d:%08d" % (self._number, number)
            self._socket.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, len(slot)))
            self._socket.sendall(slot)
            self._socket.sendall(b"\r\n")
        for _ in slots:
            assert self._line() == b"+OK"

    def read(self, slots: Slots) -> None:
        """Receive values into the slots."""
        num_ahead = max(AHEAD_BYTES // len(slots[0]), 1)
        gets = [b"*2\r\n$3\r\nGET\r\n$14\r\nbare%d:%08d\r\n" % (self._number, n) for n in range(len(slots))]
        self._socket.sendall(b"".join(gets[:num_ahead]))
        for number, slot in enumerate(slots):
            assert self._line() == b"$%d" % len(slot)
            left = slot
            while left:
                left = left[self._socket.recv_into(left) :]
            assert not self._line()
            self._socket.sendall(b"".join(gets[number + num_ahead : number + num_ahead + 1]))

    def ask(self, num_names: int) -> float:
        """Send as many EXISTS, and receive the answers."""
        names = [b"*2\r\n$6\r\nEXISTS\r\n$13\r\nnone:%08d\r\n" % number for number in range(num_names)]
        begin = time.perf_counter()
        self._socket.sendall(b"".join(names))
        left = len(b":0\r\n") * num_names
        while left:
            left -= len(self._socket.recv(left))
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the connection."""
        self._file.close()
        self._socket.close()

    def _line(self) -> bytes:
        return self._file.readline().rstrip(b"\r\n")


class BareS3:
    """Threads that put objects with obstore, and get them in ranges of the store's size.

    A server for tests answers the ranges of an object more slowly than all of it at once. S3 does not.
    """

    name = f"bare obstore, {s3.MAX_REQUESTS[Role.READ]} threads"

    def __init__(self, address: TierAddress, number: int = 0) -> None:
        import obstore

        self._prefix = f"bare/{number}"
        self._obstore = obstore
        self._bucket = open_bucket(address, 30.0)
        self._threads = ThreadPoolExecutor(s3.MAX_REQUESTS[Role.READ])

    def write(self, slots: Slots) -> None:
        """Put objects."""

        def put(number: int) -> None:
            self._obstore.put(self._bucket, f"{self._prefix}/{number}", bytes(slots[number]), use_multipart=False)

        list(self._threads.map(put, range(len(slots))))

    def read(self, slots: Slots) -> None:
        """Get objects, and copy them into the slots."""

        def get(part: tuple[int, int]) -> None:
            number, begin = part
            end = min(begin + s3.RANGE_BYTES, len(slots[number]))
            options = {"range": (begin, end)} if end - begin < len(slots[number]) else {}
            found = self._obstore.get(self._bucket, f"{self._prefix}/{number}", options=options)
            slots[number][begin:end] = memoryview(found.bytes())

        parts = [(n, begin) for n, slot in enumerate(slots) for begin in range(0, len(slot), s3.RANGE_BYTES)]
        list(self._threads.map(get, parts))

    def ask(self, num_names: int) -> float:
        """Send as many HEAD requests."""

        def head(number: int) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._obstore.head(self._bucket, f"none/{number}")

        begin = time.perf_counter()
        list(self._threads.map(head, range(num_names)))
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


class BareMooncake:
    """A client of Mooncake with registered memory, which moves 16 MiB in a call."""

    name = "bare client of Mooncake, TCP"

    def __init__(self, address: TierAddress, memory: memoryview, number: int = 0) -> None:
        from mooncake.store import MooncakeDistributedStore

        self._prefix = f"bare/{number}"
        self._client: Any = MooncakeDistributedStore()
        master = f"{address.host}:{address.port}"
        assert self._client.setup("127.0.0.1", "P2PHANDSHAKE", 0, 0, "tcp", "", master) == 0, "no master"
        assert self._client.register_buffer(_address(memory), memory.nbytes) == 0, "memory can't be registered"

    def write(self, slots: Slots) -> None:
        """Put values in place of the old ones."""
        names = [f"{self._prefix}/{number}" for number in range(len(slots))]
        self._client.batch_remove(names, True)
        self._each("batch_put_from", slots, lambda code, size_bytes: code == 0)

    def read(self, slots: Slots) -> None:
        """Get values into the slots."""
        self._each("batch_get_into", slots, lambda code, size_bytes: code == size_bytes)

    def ask(self, num_names: int) -> float:
        """Ask the master."""
        begin = time.perf_counter()
        self._client.batch_is_exist([f"none/{number}" for number in range(num_names)])
        return time.perf_counter() - begin

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()

    def _each(self, call: str, slots: Slots, is_right: Callable[[int, int], bool]) -> None:
        num_slots = max(MOONCAKE_CALL_BYTES // len(slots[0]), 1)
        for first in range(0, len(slots), num_slots):
            some = slots[first : first + num_slots]
            names = [f"{self._prefix}/{number}" for number in range(first, first + len(some))]
            codes = getattr(self._client, call)(names, [_address(slot) for slot in some], [len(slot) for slot in some])
            for code, slot in zip(codes, some, strict=True):
                assert is_right(code, len(slot)), f"{call} answered {code}"


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))

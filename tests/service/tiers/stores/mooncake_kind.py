"""Mooncake Store for the suite of all stores: a master, and one node that lends memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from service.tiers.record import RECORD_BYTES, ChunkRecord
from service.tiers.store import Place, Role, Store, StoreContext
from service.tiers.stores.mooncake import MooncakeStore
from tests.fakes.mooncake import Master, Node, skip_without_mooncake

NOT_READY = -703


class MooncakeUnderTest:
    """A cluster of one node. It opens each role once: a client is closed when its process ends."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._opened: dict[Role, Store] = {}

    def open(self, role: Role, l1: memoryview, *, patience_seconds: float | None = None) -> Store:
        if role not in self._opened:
            self._opened[role] = MooncakeStore(StoreContext(address=self._master.address(), role=role, l1=l1))
        return self._opened[role]

    @cached_property
    def _client(self) -> Any:
        from mooncake.store import MooncakeDistributedStore

        client = MooncakeDistributedStore()
        assert client.setup("127.0.0.1", "P2PHANDSHAKE", 0, 1 << 20, "tcp", "", f"127.0.0.1:{self._master.port}") == 0
        return client

    def place(self, key: bytes, slot_bytes: int) -> Place:
        return Place(key)

    def sealed(self, record: ChunkRecord, place: Place) -> bytes:
        return record.pack()

    def unsealed(self, packed: bytes, place: Place) -> ChunkRecord | None:
        return ChunkRecord.unpack(packed)

    def flip_bit(self, place: Place, at_bytes: int) -> None:
        """Write another value in place of the chunk's, with the client itself: the memory is another process's."""
        key = f"kvdepot/{place.name.hex()}"
        value = bytearray(self._client.get(key))
        value[RECORD_BYTES + at_bytes] ^= 4
        assert self._client.remove(key, True) == 0
        assert self._client.put(key, bytes(value)) == 0

    def is_begun(self, place: Place) -> bool:
        """Return whether a write of a chunk began and has not ended."""
        is_begun: bool = self._client.get_size(f"kvdepot/{place.name.hex()}") == NOT_READY
        return is_begun

    def filled(self) -> AbstractContextManager[None]:
        raise NotImplementedError("a full Mooncake evicts")

    def dead(self) -> AbstractContextManager[None]:
        return self._master.dead()

    def paused(self) -> AbstractContextManager[None]:
        return self._master.paused()


@contextmanager
def started(folder: Path) -> Iterator[MooncakeUnderTest]:
    """Start the master and the node."""
    skip_without_mooncake()
    master = Master(folder / "master.log")
    node = Node(master, "256MiB")
    try:
        yield MooncakeUnderTest(master)
    finally:
        node.kill()
        master.end()

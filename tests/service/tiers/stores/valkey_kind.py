"""Valkey for the suite of stores: one server, and a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from service.tiers.address.address import TierAddress
from service.tiers.record import RECORD_BYTES, ChunkRecord
from service.tiers.store import Place, Role, Store, StoreContext
from service.tiers.stores.valkey import ValkeyStore
from service.tiers.stores.valkey_nodes import hash_slot
from tests.servers.valkey import NUM_SLOTS, RedisServer, redis_cluster, redis_server, tls_server

SLOW_SECONDS = 30.0
"""For 64 MiB on a machine that runs other tests as well."""


class ValkeyUnderTest:
    """Stores of one server, or of a cluster, of which each node has an equal part."""

    def __init__(self, nodes: Sequence[RedisServer], address: str) -> None:
        self._nodes = nodes
        self._address = TierAddress.parse(address)

    def open(self, role: Role, l1: memoryview, *, patience_seconds: float | None = None) -> Store:
        """Open the store."""
        context = StoreContext(address=self._address, role=role, l1=l1)
        return ValkeyStore(context, call_seconds=patience_seconds or SLOW_SECONDS)

    def place(self, key: bytes, slot_bytes: int) -> Place:
        """Return the place of a key."""
        return Place(key)

    def sealed(self, record: ChunkRecord, place: Place) -> bytes:
        """Return a record as it is."""
        return record.pack()

    def unsealed(self, packed: bytes, place: Place) -> ChunkRecord | None:
        """Return what a record says."""
        return ChunkRecord.unpack(packed)

    def flip_bit(self, place: Place, at_bytes: int) -> None:
        """Change a bit of the value."""
        key = b"kvdepot:" + place.name.hex().encode()
        node = self._nodes[hash_slot(key) * len(self._nodes) // NUM_SLOTS]
        offset = RECORD_BYTES + at_bytes
        old = node.call("GETRANGE", key, offset, offset)
        assert isinstance(old, bytes)
        node.call("SETRANGE", key, offset, bytes([old[0] ^ 1]))

    def filled(self) -> AbstractContextManager[None]:
        """Let the server refuse writes."""
        return self._nodes[0].full()

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server."""
        return self._nodes[0].dead()

    def paused(self) -> AbstractContextManager[None]:
        """Stop the server."""
        return self._nodes[0].paused()


@contextmanager
def one_server(folder: Path) -> Iterator[ValkeyUnderTest]:
    """Run one server."""
    with redis_server(folder) as server:
        yield ValkeyUnderTest([server], f"valkey://127.0.0.1:{server.port}")


@contextmanager
def over_tls(folder: Path) -> Iterator[ValkeyUnderTest]:
    """Run one server that is reached over TLS, and knows the depot by its certificate."""
    with tls_server(folder) as (server, files):
        yield ValkeyUnderTest([server], f"valkeys://localhost:{server.tls_port}?{files}")


@contextmanager
def cluster(folder: Path) -> Iterator[ValkeyUnderTest]:
    """Run a cluster of three nodes."""
    with redis_cluster(folder) as nodes:
        yield ValkeyUnderTest(nodes, f"valkey://127.0.0.1:{nodes[0].port}?cluster=true")

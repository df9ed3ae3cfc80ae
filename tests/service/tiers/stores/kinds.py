"""The kinds of stores that the suite tries, and what a kind gives to it.

To add a kind: write a function that yields a `StoreUnderTest`, in a module of its own, and name it in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import pytest

from service.tiers.record import ChunkRecord
from service.tiers.store import Place, Role, Store


class StoreUnderTest(Protocol):
    """A store with its server, if it has one. It starts what the store needs, an owner too."""

    def open(self, role: Role, l1: memoryview, *, patience_seconds: float | None = None) -> Store:
        """Open the store. `l1` is all of L1. The caller closes it.

        With `patience_seconds`, a call fails when its server has not answered for that long, if the store can do that.
        """

    def place(self, key: bytes, slot_bytes: int) -> Place:
        """Return a place that no other chunk has. In a local store it has `slot_bytes` bytes."""

    def sealed(self, record: ChunkRecord, place: Place) -> bytes:
        """Return the 128 bytes that a write to the place stores. For most stores, `record.pack()`."""

    def unsealed(self, packed: bytes, place: Place) -> ChunkRecord | None:
        """Return the record of 128 bytes that a read returned. For most stores, `ChunkRecord.unpack(packed)`."""

    def flip_bit(self, place: Place, at_bytes: int) -> None:
        """Change one bit of a chunk in the store, `at_bytes` from the chunk's first byte."""

    def filled(self) -> AbstractContextManager[None]:
        """Let the store have no space for a chunk of 1 MiB, during the block. Kinds that never get full: not asked."""

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server, during the block. Then start it again at the same address, and wait until it answers.

        Kinds without a server: not asked.
        """

    def paused(self) -> AbstractContextManager[None]:
        """Stop the server's process, during the block, so that it is there and does not answer.

        Kinds without a server: not asked.
        """


class OpenStore(Protocol):
    """Opens the store that is under test, until the test ends."""

    def __call__(self, role: Role, *, patience_seconds: float | None = None) -> Store:
        """Return the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of store. `start` is "module:function"; the function gets an empty folder.

    It skips the tests where the server or the package is not there. `refuses_when_full`: a write to a full store fails
    with StoreFull, in place of evicting other chunks. Servers here keep nothing on disk: a restart forgets all chunks.
    """

    name: str
    start: str
    is_local: bool = False
    has_server: bool = False
    refuses_when_full: bool = False
    max_chunk_bytes: int = 1 << 30

    def started(self, folder: Path) -> AbstractContextManager[StoreUnderTest]:
        """Start the server, until the block ends."""
        module, _, function = self.start.partition(":")
        start = getattr(import_module(module), function)
        return cast("Callable[[Path], AbstractContextManager[StoreUnderTest]]", start)(folder)


_HERE = "tests.service.tiers.stores"
KINDS = (
    Kind(name="disk", start=f"{_HERE}.disk_kind:local", is_local=True),
    Kind(name="valkey", start=f"{_HERE}.valkey_kind:one_server", has_server=True, refuses_when_full=True),
    Kind(name="valkeys", start=f"{_HERE}.valkey_kind:over_tls", has_server=True, refuses_when_full=True),
    Kind(name="s3", start=f"{_HERE}.s3_kind:moto", has_server=True),
    Kind(name="valkey-cluster", start=f"{_HERE}.valkey_kind:cluster"),
    Kind(name="mooncake", start=f"{_HERE}.mooncake_kind:started", has_server=True),
)


def each(matches: Callable[[Kind], bool] = lambda kind: True) -> pytest.MarkDecorator:
    """Run a test with each kind of store that matches."""
    return pytest.mark.parametrize("kind", [kind for kind in KINDS if matches(kind)], ids=lambda kind: kind.name)

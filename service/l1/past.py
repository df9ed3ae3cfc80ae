"""What the index remembers of chunks that L1 does not have: why they left, why they were refused, whose they were."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey, Namespace
from telemetry.kinds import RefusalReason

MAX_REMEMBERED = 65_536  # of each

K = TypeVar("K")
V = TypeVar("V")


class RemovalReason(StrEnum):
    """Why a chunk left L1."""

    EVICTED = "evicted"
    CLEARED = "cleared"
    REPLACED = "replaced"
    CORRUPT = "found corrupt"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Why a chunk left L1, and when, in seconds since the epoch. The rest is what the chunk had then."""

    reason: RemovalReason
    time: float
    num_uses: int = 0
    last_use: int = 0
    policy_note: int = 0
    previous_use: int = 0
    will_continue: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the last store of a chunk was refused, and when, in seconds since the epoch."""

    reason: RefusalReason
    time: float


class Past:
    """The last removals, the last refusals, and the last namespaces that had chunks."""

    def __init__(self) -> None:
        self._tombstones: OrderedDict[ChunkKey, Tombstone] = OrderedDict()
        self._refused: OrderedDict[ChunkKey, Refused] = OrderedDict()
        self._namespaces: OrderedDict[Namespace, None] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Past {len(self._tombstones)} tombstones, {len(self._refused)} refused>"

    def tombstone(self, key: ChunkKey) -> Tombstone | None:
        """Return the tombstone of a removed chunk. None: the chunk was stored again, or the tombstone is forgotten."""
        return self._tombstones.get(key)

    def refused(self, key: ChunkKey) -> Refused | None:
        """Return why the last store of a chunk was refused. None: it was stored since, or that is forgotten."""
        return self._refused.get(key)

    def had_chunks(self, namespace: Namespace) -> bool:
        """Return whether a namespace had chunks, and was not forgotten."""
        return namespace in self._namespaces

    def since(self) -> float | None:
        """Return since when no tombstone is forgotten, in seconds since the epoch. None: none ever was."""
        if len(self._tombstones) < MAX_REMEMBERED:
            return None
        return next(iter(self._tombstones.values())).time

    def note_removed(self, chunk: Chunk, reason: RemovalReason) -> None:
        """Remember that a chunk left L1."""
        tombstone = Tombstone(
            *(reason, time.time(), chunk.num_uses, chunk.last_use, chunk.policy_note, chunk.previous_use),
            chunk.will_continue,
        )
        _remember(self._tombstones, chunk.key, tombstone)

    def note_refused(self, key: ChunkKey, reason: RefusalReason) -> None:
        """Remember that a chunk was not stored."""
        _remember(self._refused, key, Refused(reason, time.time()))

    def note_stored(self, key: ChunkKey) -> Tombstone | None:
        """Forget why a chunk was missing. Return its tombstone."""
        self._refused.pop(key, None)
        return self._tombstones.pop(key, None)

    def note_empty(self, namespace: Namespace) -> None:
        """Remember that a namespace had chunks."""
        _remember(self._namespaces, namespace, None)


def _remember(past: OrderedDict[K, V], key: K, value: V) -> None:
    past[key] = value
    past.move_to_end(key)
    if len(past) > MAX_REMEMBERED:
        past.popitem(last=False)

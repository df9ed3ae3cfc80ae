"""The plan of a store: what it does about each chunk, decided in one step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from service.depot.chunk_index import ChunkIndex
from service.l1.chunk import Chunk, NamespaceStats, PendingWrite
from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason
from telemetry.kinds import RefusalReason


class OfferedChunk(NamedTuple):
    """A chunk that a store brings. `position` counts chunks from token 0.

    `absent_tokens[group]` counts the first tokens of the chunk that the store does not bring; it is empty if there are
    none. `num_bytes` counts the bytes that it brings.
    """

    position: int
    key: ChunkKey
    absent_tokens: tuple[int, ...]
    num_bytes: int


@dataclass(slots=True, kw_only=True, eq=False)
class StoreContext:
    """What all chunks of one store have in common.

    `is_full` is set once L1 had no slot for a chunk. No lookup reaches the chunks after that one, so they get no slot
    either. `is_hidden` is set when a clear begins: the chunks that are reserved later never become visible. With
    `is_zeroed` their slots are overwritten with zeros, too: the tenant was removed.
    """

    namespace_stats: NamespaceStats
    slot_bytes: int
    pending_write: PendingWrite
    stored_by: str = ""
    is_full: bool = False
    is_hidden: bool = False
    is_zeroed: bool = False


class StorePlan:
    """What a store does about some chunks, by position.

    `resident` chunks are pinned. `pending` ones are written by another store, to be waited for. `reserved` ones are
    this store's to write. `evicted` chunks left L1 for them, and `replaced` ones because this store brings more.
    """

    __slots__ = ("evicted", "pending", "refused", "replaced", "reserved", "resident")

    def __init__(self) -> None:
        self.resident: dict[int, Chunk] = {}
        self.pending: dict[int, PendingWrite] = {}
        self.reserved: dict[int, Chunk] = {}
        self.refused: dict[int, RefusalReason] = {}
        self.evicted: list[Chunk] = []
        self.replaced: list[Chunk] = []


def plan_store(index: ChunkIndex, context: StoreContext, offered: Iterable[OfferedChunk]) -> StorePlan:
    """Decide about each offered chunk, in order: pin it, reserve it, wait for it, or refuse it.

    A resident chunk is replaced if the store brings all its bytes and more, unless it is pinned.
    """
    plan = StorePlan()
    for chunk in offered:
        found = index.get(chunk.key)
        if found is not None and found.pending_write is not None:
            plan.pending[chunk.position] = found.pending_write
        elif found is not None and not _is_replaced(found, context, chunk):
            index.pin([found])
            plan.resident[chunk.position] = found
        elif chunk.num_bytes == 0:
            plan.refused[chunk.position] = RefusalReason.NO_BYTES
        elif context.is_full:
            plan.refused[chunk.position] = RefusalReason.NO_SLOT
        else:
            if found is not None:
                index.remove(found, RemovalReason.REPLACED)
                plan.replaced.append(found)
            reserved, evicted = index.reserve(
                chunk.key, context.namespace_stats, context.slot_bytes, context.pending_write
            )
            plan.evicted += evicted
            if reserved is None:
                context.is_full = True
                plan.refused[chunk.position] = RefusalReason.NO_SLOT
                continue
            reserved.stored_by = context.stored_by
            reserved.absent_tokens = chunk.absent_tokens
            plan.reserved[chunk.position] = reserved
            if context.is_hidden:
                index.remove(reserved, RemovalReason.CLEARED, zero=context.is_zeroed)
    return plan


def _is_replaced(resident: Chunk, context: StoreContext, chunk: OfferedChunk) -> bool:
    return not context.is_full and resident.evictable and resident.is_improved_by(chunk.absent_tokens)

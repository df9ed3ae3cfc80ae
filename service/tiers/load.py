"""A load: one chunk that a tier reads into its slot in L1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from service.l1.keys import ChunkKey
from service.tiers.record import Owner


class LoadEnd(StrEnum):
    """How a load ended. Only ARRIVED leaves right bytes in the slot."""

    ARRIVED = "arrived"
    ABSENT = "absent"
    """The tier does not have the chunk."""
    DAMAGED = "damaged"
    """The tier has other bytes, another chunk's, or a part. It is deleted there."""
    LATE = "late"
    """It took longer than its bound. The I/O worker is dead."""
    FAILED = "failed"
    """The tier failed."""
    UNWANTED = "unwanted"
    """Nobody waited for it any more, and it had not begun."""


@dataclass(slots=True, eq=False)
class Load:
    """A chunk on its way into the `slot_bytes` at `offset_bytes` of L1.

    `done` gets the end. From then on nothing touches the slot: the I/O worker has finished with it, or is dead. After
    ARRIVED the record's `checksum` and `absent_tokens` are set, and the bytes were compared with the checksum.
    `is_wanted` is asked before it begins.
    """

    key: ChunkKey
    owner: Owner
    offset_bytes: int
    slot_bytes: int
    chunk_bytes: int
    done: asyncio.Future[LoadEnd]
    is_wanted: Callable[[], bool]
    checksum: int = 0
    absent_tokens: tuple[int, ...] = ()

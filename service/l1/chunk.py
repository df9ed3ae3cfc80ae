"""A chunk in L1, the namespace it belongs to, and the store that writes it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.l1.eviction.links import Link
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Slot
from telemetry.kinds import MissReason


@dataclass(slots=True, eq=False)
class NamespaceStats:
    """What the chunks of one namespace share, and how many there are. `geometry` is that of `RankIdentity`.

    `hash_block_size` is 0 if the keys are of token ids, else the tokens of a block hash. `block_hash_seed` is empty
    then, too: the keys do not depend on it. `chunk_size` and `chunk_bytes` are the tokens and the bytes of a chunk. Its
    slot may have more bytes.
    `prefill_tokens_per_second` is the rate of the engine that attached last, if it said one. `entry` is the first cell
    and the sum of its entry in L1's table of namespaces.
    """

    namespace: Namespace
    model_name: str
    cache_salt: str
    rank: int
    tenant: str = ""
    adapter: str = ""
    world_size: int = 1
    geometry: bytes = b""
    hash_block_size: int = 0
    chunk_size: int = 256
    chunk_bytes: int = 0
    model_revision: str = ""
    block_hash_seed: str = ""
    prefill_tokens_per_second: float | None = None
    num_chunks: int = 0
    ever_stored: bool = False
    entry: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PendingWrite:
    """A store, or with `is_load` a tier, that writes chunks. `done` ends when they are resident or abandoned."""

    done: asyncio.Future[None]
    is_load: bool = False


@dataclass(slots=True, eq=False, repr=False)
class Chunk(Link):
    """One chunk: it has a `pending_write` while it is written, is resident after that, until it is removed.

    The slot is protected while `num_pins`, the number of leases and transfers, is not 0, and during the pending write.
    A chunk that is loading may have pins. If its load fails, `lost` says why, and it has no slot any more.
    `num_readers` counts the tiers that are writing its bytes somewhere else: its slot stays as it is until they end.
    `last_use` is a tick of the eviction order. `store_time` and `release_time` are monotonic seconds: when the chunk
    became resident, and when its last pin came off. `stored_by` is the id of the operation that wrote it.
    `absent_tokens[group]` counts the first tokens of the chunk that were not stored: those slot bytes are stale. It is
    empty if the chunk is whole.

    `position` counts the chunks of its prompt before it; -1 if that is not known. `parent` is the chunk before it, and
    `num_children` counts the chunks in L1 whose parent it is. `num_uses` counts the requests that used it, of which
    `counted_request` is the last one. `will_continue` says that the session of that one goes on: the chunk is likely to
    be asked for again. `previous_use` was the `last_use` before that request, and `policy_note` is the rank of the
    policy LFU.

    `record` is the number of its record in L1's tables; None if it has none. `checksum` is the kvsum64 of all the
    chunk's bytes in its slot, stale ones included; None if it was not computed. `is_verified` says that this process
    has compared it with the bytes, or has computed it. `verify_time` is when it last did so, in monotonic seconds.
    `was_compared` says that a comparison has found it right since the bytes were written, `is_corrupt` that one has
    found other bytes: no reader gets them.

    `in_tiers` has a bit for each tier behind L1 that has the chunk, as far as this process knows.

    `must_be_zeroed` says that its slot is taken until its bytes are zeros. That is so after its tenant was removed.
    """

    key: ChunkKey
    namespace_stats: NamespaceStats
    slot: Slot[Chunk]
    pending_write: PendingWrite | None
    record: int | None = None
    stored_by: str = ""
    absent_tokens: tuple[int, ...] = ()
    checksum: int | None = None
    is_verified: bool = False
    verify_time: float = 0.0
    was_compared: bool = False
    is_corrupt: bool = False
    store_time: float = 0.0
    release_time: float = 0.0
    num_pins: int = 0
    num_readers: int = 0
    lost: MissReason | None = None
    last_use: int = 0
    in_tiers: int = 0
    removed: bool = False
    must_be_zeroed: bool = False
    position: int = -1
    parent: Chunk | None = None
    num_children: int = 0
    num_uses: int = 0
    counted_request: int = 0
    will_continue: bool = False
    policy_note: int = 0
    previous_use: int = 0

    @property
    def evictable(self) -> bool:
        """Whether another chunk may take its place."""
        return self.num_pins == 0 and self.num_readers == 0 and self.pending_write is None and not self.removed

    @property
    def is_unprotected(self) -> bool:
        """Whether it is in the index, and nothing uses its slot but tiers that read it."""
        return self.num_pins == 0 and self.pending_write is None and not self.removed

    @property
    def is_loading(self) -> bool:
        """Whether it is on its way from a tier."""
        return self.pending_write is not None and self.pending_write.is_load

    def note_verified(self, now: float) -> None:
        """Note that the checksum is that of the bytes, at `now` (monotonic)."""
        self.is_verified = True
        self.verify_time = now

    def is_improved_by(self, absent_tokens: tuple[int, ...]) -> bool:
        """Return whether a chunk that lacks `absent_tokens` has all bytes of this one, and more."""
        if not self.absent_tokens or absent_tokens == self.absent_tokens:
            return False
        return not absent_tokens or all(map(int.__le__, absent_tokens, self.absent_tokens))

    def __repr__(self) -> str:
        state = "removed" if self.removed else "being written" if self.pending_write is not None else "resident"
        return f"<Chunk {self.key.hex()[:12]} {state}, {self.num_pins} pins>"

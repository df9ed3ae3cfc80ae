"""What happens to leases and chunks, and which blocks an engine's scheduler reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telemetry.events.event import Event, fact


@fact
class LeaseGranted(Event):
    """A Lookup leased chunks until `expire_time`, in seconds since the epoch."""

    lease_id: str
    num_chunks: int
    expire_time: float


@fact
class LeaseEnded(Event):
    """A lease ended and protects no chunks.

    `reason`: released, expired, revoked, session ended, instance detached.
    """

    lease_id: str
    reason: str
    num_chunks: int


@fact
class PrefixPinned(Event):
    """PinPrefix pinned chunks until `expire_time`, in seconds since the epoch, unless hits put that off.

    `was_pinned`: the pin was there before. `num_chunks` and `num_bytes` are those of the whole pin.
    """

    pin_id: str
    model_name: str
    was_pinned: bool
    num_chunks: int
    num_bytes: int
    expire_time: float


@fact
class PinEnded(Event):
    """A pin ended and protects no chunks.

    `reason`: unpinned, expired, cleared, lost. Lost: its last chunk was corrupt, or did not come from its tier.
    `num_chunks` and `num_bytes` are those that it still had: none if they were cleared or lost.
    """

    pin_id: str
    model_name: str
    reason: str
    num_chunks: int
    num_bytes: int
    num_hits: int
    duration_seconds: float


@fact
class ChunksPrefetched(Event):
    """The loads of a Prefetch have ended. `num_failed_chunks` of its chunks did not come. `num_bytes` came."""

    model_name: str
    num_chunks: int
    num_failed_chunks: int
    num_bytes: int
    duration_seconds: float


@fact
class ChunksStored(Event):
    """Chunks are in L1, and Lookup finds them.

    `seconds_since_eviction`: an element for each chunk that was in L1 before, as far as the depot remembers.
    """

    model_name: str
    rank: int
    keys: tuple[bytes, ...]
    num_bytes: int
    seconds_since_eviction: npt.NDArray[np.float64]


@fact
class ChunksReused(Event):
    """A Lookup leased chunks that had no lease. `reuse_gap_seconds`: how long each was unused."""

    model_name: str
    tier: str
    reuse_gap_seconds: npt.NDArray[np.float64]


@fact
class ChunksEvicted(Event):
    """Chunks left a tier because others needed the space.

    `lifetime_seconds`: how long each was in the tier. `idle_seconds`: how long each was unused at the end.
    """

    model_name: str
    tier: str
    keys: tuple[bytes, ...]
    num_bytes: int
    lifetime_seconds: npt.NDArray[np.float64]
    idle_seconds: npt.NDArray[np.float64]


@fact
class ChunksRemoved(Event):
    """Chunks left a tier, and not because L1 needed the space. `reason`: replaced, cleared, evicted, erased.

    `tier` is l1, or the name of a tier behind it. `keys` is empty if the tier does not know which chunks it forgets.
    """

    model_name: str
    tier: str
    reason: str
    keys: tuple[bytes, ...]


@fact
class ChunksCorrupt(Event):
    """The bytes of chunks in L1 do not match their checksums. The chunks are dropped, and no reader gets them.

    `hop` says where that was found: at a retrieve, at an inline retrieve, or by the scrub. `l1_offsets` are the places
    of the chunks in L1, in bytes.
    """

    model_name: str
    rank: int
    hop: str
    keys: tuple[bytes, ...]
    l1_offsets: tuple[int, ...]
    num_bytes: int


@fact
class EvictionPolicyChanged(Event):
    """The depot has chosen another policy for the chunks that leave L1. Only `eviction` `auto` makes a choice."""

    policy: str
    previous_policy: str


@fact
class CacheCleared(Event):
    """ClearCache removed chunks. A `cache_salt` of None stands for all salts."""

    model_name: str
    cache_salt: str | None
    num_chunks: int
    num_bytes: int
    force: bool


@fact
class BlockAllocation:
    """The blocks that one session got. Its block table grew by `reused_block_ids`, then by `block_ids`."""

    session_id: str
    block_ids: npt.NDArray[np.uint32]
    token_ids: npt.NDArray[np.uint32]
    reused_block_ids: npt.NDArray[np.uint32]
    resumed: bool


@fact
class BlocksAllocated(Event):
    """An engine reported which blocks it gave to which sessions, in the order in which it gave them."""

    model_name: str
    block_size: int
    records: tuple[BlockAllocation, ...]

"""Requests to the depot and its answers, as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.geometry import Group, Region
from service.depot.leases import Lease
from service.depot.pin import Pin
from service.l1.keys import Prefix
from service.l1.past import Tombstone
from telemetry.kinds import MissReason, RefusalReason, Tier


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTable:
    """Blocks of one group in token order: `absent_blocks` that the engine does not have, then `block_ids`."""

    absent_blocks: int
    block_ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.absent_blocks + len(self.block_ids)

    def between(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Return the ids of the blocks `first` to `end - 1` that the engine has. Both count from the table's start."""
        return self.block_ids[max(0, first - self.absent_blocks) : max(0, end - self.absent_blocks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """Attach one rank. `peer_is_known`: it came over a unix socket, or with a client's certificate.

    `chunk_size` is what the engine wants, in tokens. 0: what fits its blocks.
    `prefill_tokens_per_second` is what the engine reports of itself. None: nothing.
    """

    instance_id: str
    model_name: str
    world_size: int
    rank: int
    groups: tuple[Group, ...]
    regions: tuple[Region, ...]
    peer_is_known: bool
    chunk_size: int = 0
    prefill_tokens_per_second: float | None = None
    model_revision: str = ""
    block_hash_seed: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupRequest:
    """Find the longest stored prefix. The engine has the first `computed_tokens` tokens itself.

    `prefill_tokens_per_second` is what the engine measured lately. None: nothing. `will_continue` says whether the
    session's prompt is likely to come again with more tokens. None: as the session said before.
    """

    instance_id: str
    session_id: str
    prefix: Prefix
    computed_tokens: int
    max_wait_seconds: float
    prefill_tokens_per_second: float | None = None
    will_continue: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Why a match is not longer, and at which token it ends. `tombstone` says when the next chunk left, if it did.

    `tier` is the place that the reason is about.
    """

    reason: MissReason
    at_token: int
    detail: str
    tombstone: Tombstone | None = None
    tier: Tier = Tier.L1


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAnswer:
    """The longest prefix of whole chunks that every rank has. `l2_tokens` of it are on their way from tiers."""

    matched_tokens: int
    lease: Lease | None
    miss: Miss | None
    l2_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHeader:
    """The tokens that a store brings, from `start_token` on. `path` precedes the names of its fields in the request.

    `will_continue` is described at `LookupRequest`.
    """

    instance_id: str
    rank: int
    session_id: str
    prefix: Prefix
    start_token: int
    path: str = ""
    will_continue: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """Copy blocks into chunks. `block_tables[group]` begins at `header.start_token`.

    `ready_event` is the handle of a CUDA event to wait for, or empty.
    """

    header: StoreHeader
    block_tables: Sequence[BlockTable]
    ready_event: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the first refused chunk was refused."""

    reason: RefusalReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAnswer:
    """The tokens from the start token on, by what became of them. The tail is too short for a chunk."""

    stored_tokens: int
    resident_tokens: int
    refused_tokens: int
    tail_tokens: int
    stored_bytes: int
    refusal: Refusal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveRequest:
    """Copy leased chunks into blocks. `block_tables[group]` begins at token 0.

    `ready_event` is the handle of a CUDA event to wait for, or empty. With `accept_partial` the call does not fail for
    a chunk that is lost or corrupt: the answer says how far the bytes are right. The call may wait
    `longest_wait_seconds` for chunks from tiers.
    """

    instance_id: str
    rank: int
    session_id: str
    lease_id: str
    block_tables: Sequence[BlockTable]
    skip_tokens: int
    ready_event: bytes
    accept_partial: bool = False
    longest_wait_seconds: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveInlineRequest:
    """Send leased chunks, without those of the first `skip_tokens` tokens."""

    instance_id: str
    rank: int
    session_id: str
    lease_id: str
    skip_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveAnswer:
    """What was copied. The first `valid_tokens` tokens of the prefix have right bytes, as far as the call named them.

    `l2_tokens` of the retrieved ones came from tiers. `miss` says why a partial answer ends where it does.
    """

    retrieved_tokens: int
    retrieved_bytes: int
    valid_tokens: int
    l2_tokens: int = 0
    miss: Miss | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRequest:
    """Pin a prompt for `ttl_seconds`, as an instance, or as one of a model, has it. One of the two names is empty.

    `is_fixed`: hits do not begin the time anew.
    """

    instance_id: str
    model_name: str
    prefix: Prefix
    ttl_seconds: float
    is_fixed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PinAnswer:
    """The pin of a prompt; None if nothing is there to pin. `matched_tokens` are what the call found of the prompt.

    `l2_tokens` of these are on their way from tiers. `miss` says why these are not more.
    """

    pin: Pin | None
    was_pinned: bool
    matched_tokens: int
    l2_tokens: int
    miss: Miss | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchRequest:
    """Load a prompt ahead of its request. The names are described at `PinRequest`."""

    instance_id: str
    model_name: str
    prefix: Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchAnswer:
    """What L1 has of a prompt, and what is on its way there. `loading_bytes` are those that the call itself loads.

    `loading_tokens` are the tokens of these by tier. `estimated_seconds` is None if nothing is loaded or measured.
    """

    l1_tokens: int
    l2_tokens: int
    loading_bytes: int
    loading_tokens: Mapping[str, int]
    estimated_seconds: float | None
    miss: Miss | None

"""Requests and answers as plain values: what the servicers hand to the depot and get back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.geometry import Group, Region
from service.depot.leases import Lease
from service.l1.index import Tombstone
from service.l1.keys import Prefix
from telemetry.kinds import MissReason, RefusalReason


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTable:
    """Blocks of one group in token order: so many that the engine does not have, then `block_ids`."""

    absent_blocks: int
    block_ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return self.absent_blocks + len(self.block_ids)

    def between(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """The ids of some blocks, counted from the table's first one, as far as the engine has them."""
        return self.block_ids[max(0, first - self.absent_blocks) : max(0, end - self.absent_blocks)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """Register one rank. `peer_is_known` says whether it came over a unix socket or with a client's certificate."""

    instance_id: str
    model_name: str
    world_size: int
    rank: int
    groups: tuple[Group, ...]
    regions: tuple[Region, ...]
    peer_is_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupRequest:
    """Find the longest prefix that is stored."""

    instance_id: str
    session_id: str
    prefix: Prefix
    computed_tokens: int
    max_wait_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """Why a match is not longer, from which token on; `drop` says when the chunk went, if it did."""

    reason: MissReason
    at_token: int
    detail: str
    drop: Tombstone | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupAnswer:
    """The longest prefix of whole chunks that every rank holds."""

    matched_tokens: int
    lease: Lease | None
    miss: Miss | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHeader:
    """Which tokens a store brings. `path` is what comes before its fields' names in the request."""

    instance_id: str
    rank: int
    session_id: str
    prefix: Prefix
    start_token: int
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """Copy blocks into chunks; one block table per group, from `header.start_token` on.

    `ready_event` is the handle of a CUDA event to wait for, or empty.
    """

    header: StoreHeader
    block_tables: Sequence[BlockTable]
    ready_event: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the first chunk that was refused was refused."""

    reason: RefusalReason
    detail: str


@dataclass(slots=True, kw_only=True)
class StoreAnswer:
    """What became of the tokens from the start token on; filled in as the store goes on."""

    stored_tokens: int = 0
    resident_tokens: int = 0
    refused_tokens: int = 0
    tail_tokens: int = 0
    stored_bytes: int = 0
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveRequest:
    """Copy leased chunks into blocks; one block table per group, from token 0 on.

    `ready_event` is the handle of a CUDA event to wait for, or empty.
    """

    instance_id: str
    rank: int
    session_id: str
    lease_id: str
    block_tables: Sequence[BlockTable]
    skip_tokens: int
    ready_event: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveInlineRequest:
    """Send leased chunks."""

    instance_id: str
    rank: int
    session_id: str
    lease_id: str
    skip_tokens: int


@dataclass(slots=True, kw_only=True)
class RetrieveAnswer:
    """What was copied; filled in when it was."""

    retrieved_tokens: int = 0
    retrieved_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class ClearAnswer:
    """What was cleared; filled in as it is."""

    num_cleared_chunks: int = 0
    cleared_bytes: int = 0
    num_kept_chunks: int = 0
    num_revoked_leases: int = 0

"""The commands that the scheduler sends to the workers with each step, and the workers' reports.

The engine pickles both between its own processes.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvdepot.v1.cache_pb2 import Prefix

BlockIds = tuple[list[int], ...]
"""The whole block table of a request, by group, in the order of the tokens; the null block where there is none."""


@dataclass(slots=True, kw_only=True)
class GroupTable:
    """The blocks of one group in the order of the tokens. The engine lacks the first `absent_blocks`."""

    absent_blocks: int
    block_ids: list[int]


GroupTables = tuple[GroupTable, ...]
"""One table per group of the engine."""


@dataclass(slots=True, kw_only=True)
class TransferCommand:
    """The common part of loads and stores."""

    transfer_id: int
    request_id: str
    session_id: str
    tables: GroupTables
    traceparent: str


@dataclass(slots=True, kw_only=True)
class LoadCommand(TransferCommand):
    """Retrieve a leased prefix into blocks.

    `leases` has one lease per replica (see `WorkerId`). It is empty if the load is known to be impossible: then the
    load fails immediately and the engine computes the tokens. `tables` cover tokens 0 to `num_tokens`. Blocks below
    `skip_tokens` are the engine's own and are not written. A load that `may_be_partial` may end after any block: the
    engine can go on from there.
    """

    leases: tuple[str, ...]
    num_tokens: int
    skip_tokens: int
    may_be_partial: bool

    def blocks_from(self, token: int) -> list[int]:
        """Return the blocks that hold tokens from this one on, of a load that may be partial."""
        (table,) = self.tables
        return table.block_ids[token * len(table.block_ids) // self.num_tokens :]


@dataclass(slots=True, kw_only=True)
class StoreCommand(TransferCommand):
    """Store the whole chunks of a prefix from `start_token` on. `tables` cover the tokens from there.

    `will_continue` is described at `RequestTraits`. `token_ids` are those of the whole prefix if the depot wants them,
    else empty.
    """

    chunk_hashes: list[bytes]
    chunk_size: int
    cache_salt: str
    adapter: str
    start_token: int
    will_continue: bool | None = None
    token_ids: array[int] = field(default_factory=lambda: array("I"))

    @property
    def prefix(self) -> Prefix:
        """The prefix from token 0, by the hash of each chunk's last block."""
        prefix = Prefix(
            block_hashes=self.chunk_hashes,
            hash_block_size=self.chunk_size,
            cache_salt=self.cache_salt,
            adapter=self.adapter,
        )
        prefix.token_ids.extend(self.token_ids)
        return prefix


@dataclass(slots=True)
class StepCommands:
    """All commands of one step."""

    loads: list[LoadCommand] = field(default_factory=list)
    stores: list[StoreCommand] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class TransferOutcome:
    """What became of a transfer at some workers, for statistics only.

    `num_bytes` were copied, by all of these workers together. `seconds` is how long the slowest one's call took. The
    three counts are of a store's tokens: copied, in the depot already, refused. `reason` is empty if nothing failed.
    """

    num_bytes: int = 0
    seconds: float = 0.0
    stored_tokens: int = 0
    resident_tokens: int = 0
    refused_tokens: int = 0
    reason: str = ""

    def aggregate(self, other: TransferOutcome) -> TransferOutcome:
        """Return both as one. Each worker moves its own part of the same tokens."""
        return TransferOutcome(
            num_bytes=self.num_bytes + other.num_bytes,
            seconds=max(self.seconds, other.seconds),
            stored_tokens=max(self.stored_tokens, other.stored_tokens),
            resident_tokens=min(self.resident_tokens, other.resident_tokens),
            refused_tokens=max(self.refused_tokens, other.refused_tokens),
            reason=self.reason or other.reason,
        )


Outcomes = Mapping[int, TransferOutcome]
"""Outcomes by transfer."""


@dataclass(slots=True, kw_only=True)
class WorkerReport:
    """The report of workers about the time since the step before.

    A transfer is done at a worker when the depot certainly does not touch its blocks again, even if it failed.
    `done[transfer_id]` counts such workers. `failed` transfers have not loaded or stored all of their tokens. Of a load
    in `partial`, the worker that has loaded the fewest tokens has so many; their blocks are right, from token 0 on.
    `chunk_sizes[worker_index]` is the depot's chunk size, 0 while the worker is not attached. It is sent with the
    first step, and with each new or lost attachment. With it, the report says whether the depot wants tokens; None:
    it does not say.
    `outcomes` has each transfer of this time that a worker has sent or refused.
    """

    done: Counter[int] = field(default_factory=Counter)
    failed: set[int] = field(default_factory=set)
    partial: dict[int, int] = field(default_factory=dict)
    chunk_sizes: dict[int, int] = field(default_factory=dict)
    outcomes: dict[int, TransferOutcome] = field(default_factory=dict)
    wants_token_ids: bool | None = None

    def aggregate(self, other: WorkerReport) -> WorkerReport:
        """Return both reports as one. The other's chunk sizes are the later ones."""
        return WorkerReport(
            done=self.done + other.done,
            failed=self.failed | other.failed,
            partial={**self.partial, **{key: min(self.partial.get(key, n), n) for key, n in other.partial.items()}},
            chunk_sizes={**self.chunk_sizes, **other.chunk_sizes},
            outcomes=aggregated(self.outcomes, other.outcomes),
            wants_token_ids=self.wants_token_ids if other.wants_token_ids is None else other.wants_token_ids,
        )


def aggregated(outcomes: Outcomes, others: Outcomes) -> dict[int, TransferOutcome]:
    """Return the outcomes of both, by transfer."""
    both = {key: outcomes[key].aggregate(other) for key, other in others.items() if key in outcomes}
    return {**outcomes, **others, **both}

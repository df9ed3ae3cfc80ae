"""What the scheduler's side tells the workers with each step, and what they tell it.

vLLM pickles all of it between its own processes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kvdepot.v1.cache_pb2 import Prefix

BlockIds = tuple[list[int], ...]
"""Blocks by KV cache group of vLLM, in the order of the tokens; the null block where there is none."""


@dataclass(slots=True, kw_only=True)
class Table:
    """Blocks of one group in the order of the tokens, after so many that vLLM has let go of or never had."""

    absent_blocks: int
    block_ids: list[int]


Tables = tuple[Table, ...]
"""By KV cache group of vLLM."""


@dataclass(slots=True, kw_only=True)
class LoadCommand:
    """Retrieve a leased prefix into blocks; those below ``skip_tokens`` are the engine's own and are not written.

    ``leases`` holds one per replica (see `Place`); none of them if the load is known to be impossible, so that it
    fails at once and is computed. ``tables`` cover the tokens from 0 to ``num_tokens``.
    """

    operation_id: int
    request_id: str
    session_id: str
    leases: tuple[str, ...]
    tables: Tables
    num_tokens: int
    skip_tokens: int
    traceparent: str


@dataclass(slots=True, kw_only=True)
class StoreCommand:
    """Store the whole chunks of a prefix from ``start_token`` on; ``tables`` cover the tokens from there."""

    operation_id: int
    request_id: str
    session_id: str
    chunk_hashes: list[bytes]
    chunk_size: int
    cache_salt: str
    adapter: str
    start_token: int
    tables: Tables
    traceparent: str

    @property
    def prefix(self) -> Prefix:
        """The prefix from token 0, by the hash of each chunk's last block."""
        return Prefix(
            block_hashes=self.chunk_hashes,
            hash_block_size=self.chunk_size,
            cache_salt=self.cache_salt,
            adapter=self.adapter,
        )


@dataclass(slots=True)
class StepCommands:
    """All orders of one step."""

    loads: list[LoadCommand] = field(default_factory=list)
    stores: list[StoreCommand] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class WorkerReport:
    """What happened at workers since the step before.

    An operation is settled at a worker once the depot is known not to touch its blocks any more; `settled` counts
    workers. `failed` operations did not do what they were to do. `chunk_sizes` tells, by worker, how the depot cuts
    tokens into chunks, 0 while the worker is not attached; it is sent with the first step and when it changes.
    """

    settled: Counter[int] = field(default_factory=Counter)
    failed: set[int] = field(default_factory=set)
    chunk_sizes: dict[int, int] = field(default_factory=dict)

    def aggregate(self, other: WorkerReport) -> WorkerReport:
        """What both workers report; vLLM calls it."""
        return WorkerReport(
            settled=self.settled + other.settled,
            failed=self.failed | other.failed,
            chunk_sizes={**self.chunk_sizes, **other.chunk_sizes},
        )

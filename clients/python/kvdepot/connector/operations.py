"""Loads and stores that are under way, and the references that keep their blocks in their place.

Blocks that an operation touches are kept by a reference of its own in vLLM's block pool until the operation is settled,
so that neither a request that ends, nor a preemption, nor a window that moves on hands them to somebody else while the
depot reads or writes them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvdepot.connector.commands import Tables
from kvdepot.connector.request_state import RequestState

# Shares of all blocks: even a depot that hangs in the middle of everything leaves the engine a quarter.
MOST_LOADING = 0.5
MOST_STORING = 0.25
# vLLM makes steps for this long after an operation has timed out. The connector attaches again to a depot that recovers
# within this time.
SETTLE_SECONDS = 60.0
# vLLM asks whether to step on at least this often; after a longer pause a call has woken it.
IDLE_SECONDS = 1.0


class BlockPool(Protocol):
    """vLLM's, as far as references to blocks go."""

    @property
    def blocks(self) -> Sequence[Any]: ...
    @property
    def null_block(self) -> Any: ...
    def touch(self, blocks: Sequence[Any]) -> None: ...
    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None: ...


@dataclass(slots=True, eq=False)
class Operation:
    """A load or a store that may touch blocks: which, until how many workers have settled it."""

    state: RequestState
    is_load: bool
    start_token: int
    end_token: int
    blocks: list[Any]
    leases: tuple[str, ...]
    workers_left: int
    failed: bool = False


class Operations:
    """Those of one engine that are not settled, oldest first; each has ``longest_seconds`` until its deadline."""

    def __init__(self, num_blocks: int, num_workers: int, longest_seconds: float) -> None:
        self._num_workers = num_workers
        self._longest_seconds = longest_seconds
        self._pool: BlockPool | None = None
        self._operations: dict[int, Operation] = {}
        self._next_operation_id = itertools.count(1)
        self._most = {True: int(num_blocks * MOST_LOADING), False: int(num_blocks * MOST_STORING)}
        self._num_kept = {True: 0, False: 0}
        self._step_until = 0.0
        self._last_question = 0.0

    def __len__(self) -> int:
        return len(self._operations)

    def bind(self, pool: BlockPool) -> None:
        """Takes vLLM's block pool."""
        self._pool = pool

    @property
    def null_block_id(self) -> int:
        """What stands in block tables where there is no block."""
        return int(self._bound_pool.null_block.block_id)

    def room(self, *, is_load: bool) -> int:
        """How many more blocks may be kept."""
        return max(0, self._most[is_load] - self._num_kept[is_load])

    def is_possible(self, num_blocks: int) -> bool:
        """Whether a load of so many blocks would have room if it were the only one."""
        return num_blocks <= self._most[True]

    def need_steps(self) -> bool:
        """Whether vLLM should step on for operations to be settled, though it has nothing else to do.

        Workers report in steps alone. While the depot hangs, steps end some time after the last operation's deadline.
        vLLM then asks again only when a call wakes it, such as a reset or a pause: they go on from there.
        """
        if not self._operations:
            return False
        now = time.monotonic()
        if now >= max(self._step_until, self._last_question + IDLE_SECONDS):
            self._step_until = now + SETTLE_SECONDS
        self._last_question = now
        return now < self._step_until

    def stored_end(self, state: RequestState, num_tokens: int) -> int:
        """Up to where a request's prefix is stored if so many tokens are, and what is under way ends well."""
        for operation_id in sorted(state.operations):
            operation = self._operations[operation_id]
            if not (operation.is_load or operation.failed) and operation.start_token <= num_tokens:
                num_tokens = max(num_tokens, operation.end_token)
        return num_tokens

    def begin(
        self,
        state: RequestState,
        tables: Tables,
        *,
        is_load: bool,
        leases: tuple[str, ...],
        start_token: int,
        end_token: int,
    ) -> int:
        """Keeps the blocks for an operation; returns its id."""
        blocks = [self._bound_pool.blocks[block_id] for table in tables for block_id in table.block_ids]
        self._bound_pool.touch(blocks)
        self._num_kept[is_load] += len(blocks)
        operation_id = next(self._next_operation_id)
        state.operations.add(operation_id)
        self._step_until = time.monotonic() + self._longest_seconds + SETTLE_SECONDS
        self._operations[operation_id] = Operation(
            state=state,
            is_load=is_load,
            start_token=start_token,
            end_token=end_token,
            blocks=blocks,
            leases=leases,
            workers_left=self._num_workers,
        )
        return operation_id

    def fail(self, operation_ids: Iterable[int]) -> None:
        """Notes that operations did not do what they were to do: their tokens are not stored."""
        for operation_id in operation_ids:
            if operation := self._operations.get(operation_id):
                operation.failed = True
                operation.state.stored_tokens = min(operation.state.stored_tokens, operation.start_token)

    def settle(self, num_workers: Mapping[int, int]) -> list[Operation]:
        """Notes that so many workers have settled each; returns those that all have, whose blocks are let go of.

        Those of the tail first, as vLLM does: they are the first to be reused.
        """
        settled = []
        for operation_id, count in num_workers.items():
            operation = self._operations.get(operation_id)
            if operation is None:
                continue
            operation.workers_left -= count
            if operation.workers_left > 0:
                continue
            del self._operations[operation_id]
            self._num_kept[operation.is_load] -= len(operation.blocks)
            self._bound_pool.free_blocks(reversed(operation.blocks))
            operation.state.operations.discard(operation_id)
            settled.append(operation)
        return settled

    @property
    def _bound_pool(self) -> BlockPool:
        assert self._pool is not None, "vLLM binds its block pool before it schedules"
        return self._pool

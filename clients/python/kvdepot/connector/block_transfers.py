"""The running loads and stores of one engine, and the references that keep their blocks in place.

Each transfer holds a reference of its own to its blocks in the engine's block pool until it is done. So neither the end
of a request, nor a preemption, nor a moving window gives the blocks away while the depot reads or writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvdepot.connector.commands import GroupTables, Outcomes, TransferOutcome
from kvdepot.connector.request_state import RequestState

# Shares of all blocks. Even a depot that hangs during loads and stores leaves the engine a quarter.
MAX_LOADING_SHARE = 0.5
MAX_STORING_SHARE = 0.25
# The engine makes steps for this long after a transfer has timed out. If the depot recovers within this time, the
# connector attaches again and the transfer is done.
GRACE_SECONDS = 60.0
# The engine asks at least this often whether to make a step. After a longer pause, a call has woken it.
IDLE_SECONDS = 1.0


class BlockReferences(Protocol):
    """The engine's block pool: it counts references, and a block without one is free."""

    @property
    def null_block_id(self) -> int: ...
    def hold(self, block_ids: Sequence[int]) -> None: ...
    def release(self, block_ids: Iterable[int]) -> None: ...


@dataclass(slots=True, eq=False)
class BlockTransfer:
    """A load or a store of the tokens from `start_token` to `end_token`.

    A load does not write the tokens below `skip_tokens`. A transfer may touch blocks until `workers_left` more workers
    report that it is done. `moved_end` is where a partial load ended. `outcome` is None until a worker reports one.
    """

    state: RequestState
    is_load: bool
    start_token: int
    skip_tokens: int
    end_token: int
    block_ids: list[int]
    leases: tuple[str, ...]
    workers_left: int
    failed: bool = False
    moved_end: int | None = None
    outcome: TransferOutcome | None = None

    @property
    def num_tokens(self) -> int:
        """How many tokens it was to move."""
        return self.end_token - max(self.start_token, self.skip_tokens)

    @property
    def num_loaded(self) -> int:
        """How many tokens a load has written that are right."""
        if self.failed:
            return 0
        end = self.end_token if self.moved_end is None else self.moved_end
        return max(0, end - max(self.start_token, self.skip_tokens))


class BlockTransfers:
    """The transfers of one engine that are not done, oldest first. Each ends within `longest_transfer_seconds`.

    `clock` is in seconds.
    """

    def __init__(
        self, num_blocks: int, num_workers: int, longest_transfer_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._num_workers = num_workers
        self._longest_transfer_seconds = longest_transfer_seconds
        self._references: BlockReferences | None = None
        self._transfers: dict[int, BlockTransfer] = {}
        self._next_id = itertools.count(1)
        self._max_blocks = {True: int(num_blocks * MAX_LOADING_SHARE), False: int(num_blocks * MAX_STORING_SHARE)}
        self._num_held = {True: 0, False: 0}
        self._step_until = 0.0
        self._last_question = 0.0

    def __len__(self) -> int:
        return len(self._transfers)

    def bind(self, references: BlockReferences) -> None:
        """Use this block pool from the engine's start on."""
        self._references = references

    @property
    def null_block_id(self) -> int:
        """The id that stands for no block in block tables."""
        return self._bound_references.null_block_id

    def num_free(self, *, is_load: bool) -> int:
        """Return how many more blocks loads, or stores, may hold."""
        return max(0, self._max_blocks[is_load] - self._num_held[is_load])

    def can_ever_load(self, num_blocks: int) -> bool:
        """Return whether a load of so many blocks fits if no other load runs."""
        return num_blocks <= self._max_blocks[True]

    def need_steps(self) -> bool:
        """Return whether an idle engine should make another step, because transfers run.

        Workers report in steps only. If the depot hangs, the steps end some time after the last transfer's deadline.
        The engine asks again only when a call wakes it, such as a reset or a pause. Then the steps go on for as long
        as before.
        """
        if not self._transfers:
            return False
        now = self._clock()
        if now >= max(self._step_until, self._last_question + IDLE_SECONDS):
            self._step_until = now + GRACE_SECONDS
        self._last_question = now
        return now < self._step_until

    def stored_end(self, state: RequestState, num_tokens: int) -> int:
        """Return the end of the stored prefix if `num_tokens` are stored and the request's running stores succeed."""
        for transfer_id in sorted(state.transfer_ids):
            transfer = self._transfers[transfer_id]
            if not (transfer.is_load or transfer.failed) and transfer.start_token <= num_tokens:
                num_tokens = max(num_tokens, transfer.end_token)
        return num_tokens

    def begin(
        self,
        state: RequestState,
        tables: GroupTables,
        *,
        is_load: bool,
        leases: tuple[str, ...],
        start_token: int,
        end_token: int,
        skip_tokens: int = 0,
    ) -> int:
        """Hold the blocks of a new transfer and return its id."""
        block_ids = [block_id for table in tables for block_id in table.block_ids]
        self._bound_references.hold(block_ids)
        self._num_held[is_load] += len(block_ids)
        transfer_id = next(self._next_id)
        state.transfer_ids.add(transfer_id)
        self._step_until = self._clock() + self._longest_transfer_seconds + GRACE_SECONDS
        self._transfers[transfer_id] = BlockTransfer(
            state=state,
            is_load=is_load,
            start_token=start_token,
            skip_tokens=skip_tokens,
            end_token=end_token,
            block_ids=block_ids,
            leases=leases,
            workers_left=self._num_workers,
        )
        return transfer_id

    def fail(self, transfer_ids: Iterable[int]) -> list[BlockTransfer]:
        """Mark transfers as failed: their tokens are not stored. Return those that had not failed before."""
        failed = []
        for transfer_id in transfer_ids:
            if transfer := self._transfers.get(transfer_id):
                if not transfer.failed:
                    failed.append(transfer)
                transfer.failed = True
                transfer.state.stored_tokens = min(transfer.state.stored_tokens, transfer.start_token)
        return failed

    def cut(self, num_loaded: Mapping[int, int]) -> None:
        """Note that these loads have loaded so many tokens only: those behind them may not be stored any more."""
        for transfer_id, num_tokens in num_loaded.items():
            if transfer := self._transfers.get(transfer_id):
                transfer.moved_end = min(num_tokens, num_tokens if transfer.moved_end is None else transfer.moved_end)
                transfer.state.stored_tokens = min(transfer.state.stored_tokens, num_tokens)

    def record(self, outcomes: Outcomes) -> None:
        """Note what became of transfers at some workers."""
        for transfer_id, outcome in outcomes.items():
            if transfer := self._transfers.get(transfer_id):
                transfer.outcome = outcome if transfer.outcome is None else transfer.outcome.aggregate(outcome)

    def mark_done(self, num_workers: Mapping[int, int]) -> list[BlockTransfer]:
        """Count the workers at which each transfer is done. Release and return those that are done at all workers.

        The blocks of the tail are released first, so that the engine reuses them before those of the head.
        """
        done = []
        for transfer_id, count in num_workers.items():
            transfer = self._transfers.get(transfer_id)
            if transfer is None:
                continue
            transfer.workers_left -= count
            if transfer.workers_left > 0:
                continue
            del self._transfers[transfer_id]
            self._num_held[transfer.is_load] -= len(transfer.block_ids)
            self._bound_references.release(reversed(transfer.block_ids))
            transfer.state.transfer_ids.discard(transfer_id)
            done.append(transfer)
        return done

    @property
    def _bound_references(self) -> BlockReferences:
        assert self._references is not None, "the engine binds its block pool before it schedules"
        return self._references

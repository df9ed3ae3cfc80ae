"""The scheduler's side: decides what is loaded and stored. Nothing here waits, and nothing here needs vLLM.

Blocks that an operation touches are kept by a reference of its own in vLLM's block pool until the operation is settled,
so that neither a request that ends nor a preemption hands them to somebody else while the depot reads or writes them.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvdepot.v1.cache_pb2 import Prefix
from kvdepot.vllm.block_reports import Allocation
from kvdepot.vllm.identity import adapter_of, salt_of, session_of, traceparent_of
from kvdepot.vllm.lookups import Lookup
from kvdepot.vllm.orders import BlockIds, LoadOrder, StepOrders, StoreOrder, WorkerReport
from kvdepot.vllm.requests import RequestState

logger = logging.getLogger(__name__)

# Shares of all blocks: even a depot that hangs in the middle of everything leaves the engine a quarter.
MOST_LOADING = 0.5
MOST_STORING = 0.25
KEEP_STEPPING_SECONDS = 5.0


class BlockPool(Protocol):
    """vLLM's, as far as references to blocks go."""

    @property
    def blocks(self) -> Sequence[Any]: ...
    def touch(self, blocks: Sequence[Any]) -> None: ...
    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None: ...


class Asks(Protocol):
    """Questions to the depot; `Lookups` is one."""

    @property
    def paused(self) -> bool: ...
    def begin(self, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> Lookup: ...
    def give_up(self, lookup: Lookup) -> None: ...
    def release(self, leases: Sequence[str]) -> None: ...
    def end_session(self, session_id: str) -> None: ...


class Reports(Protocol):
    """Where allocations are told; `BlockReports` is one."""

    def note(self, allocation: Allocation) -> None: ...
    def end(self, session_id: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What is fixed at the engine's start. ``block_sizes`` are those of vLLM's groups, in tokens."""

    hash_block_size: int
    block_sizes: tuple[int, ...]
    num_blocks: int
    num_workers: int
    loads: bool
    stores: bool


@dataclass(slots=True, eq=False)
class _Operation:
    """A load or a store that may touch blocks: which, until how many workers have settled it."""

    state: RequestState
    is_load: bool
    start_token: int
    blocks: list[Any]
    leases: tuple[str, ...]
    begun: float
    workers_left: int
    failed: bool = False


class SchedulerSide:
    """One engine's requests, and the operations that are not settled."""

    def __init__(self, settings: SchedulerSettings, asks: Asks, reports: Reports | None) -> None:
        self._settings = settings
        self._asks = asks
        self._reports = reports
        self._pool: BlockPool | None = None
        self._requests: dict[str, RequestState] = {}
        self._asking: set[RequestState] = set()
        self._operations: dict[int, _Operation] = {}
        self._next_operation_id = itertools.count(1)
        self._orders = StepOrders()
        self._chunk_sizes: dict[int, int] = {}
        self._chunk_size = 0
        self._generation = ""
        self._most = {
            True: int(settings.num_blocks * MOST_LOADING),
            False: int(settings.num_blocks * MOST_STORING),
        }
        self._num_kept = {True: 0, False: 0}

    def __repr__(self) -> str:
        return f"<SchedulerSide {len(self._requests)} requests, {len(self._operations)} operations>"

    def bind(self, pool: BlockPool) -> None:
        """Takes vLLM's block pool."""
        self._pool = pool

    def chunk_sizes_changed(self, chunk_sizes: Mapping[int, int]) -> None:
        """Workers told how the depot cuts tokens into chunks; 0: that it is not there."""
        self._chunk_sizes.update(chunk_sizes)
        sizes = set(self._chunk_sizes.values())
        whole = len(self._chunk_sizes) == self._settings.num_workers and len(sizes) == 1
        chunk_size = sizes.pop() if whole else 0
        if chunk_size % self._settings.hash_block_size:
            logger.error("chunks of %d tokens don't fit hashes of %d", chunk_size, self._settings.hash_block_size)
            chunk_size = 0
        self._chunk_size = chunk_size
        for state in self._requests.values():  # what attached may be another depot, and empty
            state.stored_tokens = 0

    def arrived(self, request: Any) -> None:
        """A request is new."""
        self._state(request)

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens beyond those can be loaded, and whether they will; None: ask again."""
        state = self._state(request)
        state.local_tokens = num_computed_tokens
        wanted = self._whole_chunks(state)
        if (
            not self._settings.loads
            or not state.may_load
            or request.skip_reading_prefix_cache
            or wanted <= num_computed_tokens
        ):
            self._give_up(state)
            return 0, False
        lookup = state.lookup
        now = time.monotonic()
        if lookup is not None and lookup.matched_tokens is not None and now >= lookup.good_until:
            self._give_up(state)
            lookup = None
        if lookup is None:
            if self._asks.paused:
                return 0, False
            prefix = Prefix(
                block_hashes=self._chunk_hashes(state, wanted),
                hash_block_size=self._chunk_size,
                cache_salt=salt_of(request, self._generation),
                adapter=adapter_of(request),
            )
            state.lookup = self._asks.begin(state.session_id, prefix, num_computed_tokens, traceparent_of(request))
            state.known_to_depot = True
            self._asking.add(state)
            return None, False
        if lookup.matched_tokens is None:
            if now < lookup.deadline:
                return None, False
            state.may_load = False  # it has waited long enough
            return 0, False
        matched = min(lookup.matched_tokens, wanted)
        state.stored_tokens = max(state.stored_tokens, matched)
        num_blocks = sum((matched - num_computed_tokens) // size for size in self._settings.block_sizes)
        if not lookup.leases or num_blocks <= 0 or num_blocks > self._most[True]:
            return 0, False
        if self._num_kept[True] + num_blocks > self._most[True]:
            return (None if now < lookup.deadline else 0), False  # loads that are under way end soon, or never
        return matched - num_computed_tokens, True

    def allocated(self, request: Any, block_ids: BlockIds, num_external_tokens: int) -> None:
        """vLLM made room: for the tokens to load, or, if there are none, for others."""
        state = self._state(request)
        if num_external_tokens == 0:
            self._give_up(state)  # after a load there is none
            return
        lookup, state.lookup = state.lookup, None
        self._asking.discard(state)
        end = state.local_tokens + num_external_tokens
        leases = lookup.leases if lookup is not None else ()
        matched = (lookup.matched_tokens or 0) if lookup is not None else 0
        if not self._chunk_size or end % self._chunk_size or end > matched:
            self._asks.release(leases)  # not what was found: the load fails, and vLLM computes the tokens
            leases = ()
        tables = self._tables(block_ids, 0, end)
        written = self._tables(block_ids, state.local_tokens, end)
        state.may_load = False  # should it fail, the tokens are computed
        state.stored_tokens = end
        self._orders.loads.append(
            LoadOrder(
                operation_id=self._begin(state, written, is_load=True, leases=leases, start_token=0),
                request_id=state.request_id,
                session_id=state.session_id,
                leases=leases,
                block_ids=tables,
                num_tokens=end,
                skip_tokens=state.local_tokens,
                traceparent=traceparent_of(request),
            )
        )

    def step(
        self,
        num_scheduled_tokens: Mapping[str, int],
        tables: Callable[[str], BlockIds | None],
        new_blocks: Sequence[tuple[str, BlockIds, bool]],
        *,
        may_store: bool,
    ) -> StepOrders:
        """What the workers are to do in this step.

        ``tables`` gives a request's whole block tables; ``new_blocks`` are those that requests got in this step, all
        they have where they start anew. In a step in which another connector loads while it computes, requests that
        start anew may not be stored: should that load fail, what they compute is wrong.
        """
        self._expire()
        if not may_store:
            for request_id, _, anew in new_blocks:
                if anew and (state := self._requests.get(request_id)):
                    state.may_store = False
        if self._chunk_size:
            for request_id, num_tokens in num_scheduled_tokens.items():
                state = self._requests.get(request_id)
                if state is None:
                    continue
                computed = state.request.num_computed_tokens + num_tokens
                if computed >= state.stored_tokens + self._chunk_size:  # rarely, in decode: this is all it costs
                    self._store(state, computed, tables)
            if self._reports is not None:
                for request_id, block_ids, anew in new_blocks:
                    if state := self._requests.get(request_id):
                        self._report(self._reports, state, block_ids[0], num_scheduled_tokens.get(request_id, 0), anew)
        orders, self._orders = self._orders, StepOrders()
        return orders

    def reported(self, report: WorkerReport) -> None:
        """Takes what workers tell."""
        for operation_id in report.failed:
            if operation := self._operations.get(operation_id):
                operation.failed = True
                operation.state.stored_tokens = min(operation.state.stored_tokens, operation.start_token)
        for operation_id, num_workers in report.settled.items():
            if operation := self._operations.get(operation_id):
                operation.workers_left -= num_workers
                if operation.workers_left <= 0:
                    self._end(operation_id, operation)
        if report.chunk_sizes:
            self.chunk_sizes_changed(report.chunk_sizes)

    def finished(self, request: Any) -> None:
        """vLLM has finished or aborted a request; it frees the blocks, but for the references of operations."""
        state = self._requests.get(request.request_id)
        if state is None:
            return
        self._give_up(state)
        state.finished = True
        self._end_session(state)

    def reset(self) -> None:
        """What is stored is not of this model any more: from now on the engine has a salt of its own."""
        self._generation = uuid.uuid4().hex
        for state in self._requests.values():
            self._give_up(state)
            state.may_load = state.may_store = False

    @property
    def is_waiting_for_workers(self) -> bool:
        """Whether operations are about to be settled, so that vLLM should go on stepping."""
        newest = next(reversed(self._operations.values()), None)
        return newest is not None and time.monotonic() < newest.begun + KEEP_STEPPING_SECONDS

    def _state(self, request: Any) -> RequestState:
        state = self._requests.get(request.request_id)
        if state is None or state.finished:  # an id may come again while operations of the last one are under way
            state = self._requests[request.request_id] = RequestState(request, session_of(request))
        return state

    def _whole_chunks(self, state: RequestState) -> int:
        """Tokens of the whole chunks whose hashes are known; 0 while there is no depot."""
        if not self._chunk_size:
            return 0
        known: int = min(len(state.request.block_hashes) * self._settings.hash_block_size, state.request.num_tokens)
        return known // self._chunk_size * self._chunk_size

    def _chunk_hashes(self, state: RequestState, end: int) -> list[bytes]:
        """The hash of each chunk's last block, which covers all tokens up to there."""
        per_chunk = self._chunk_size // self._settings.hash_block_size
        hashes: list[bytes] = state.request.block_hashes[
            per_chunk - 1 : end // self._settings.hash_block_size : per_chunk
        ]
        return hashes

    def _tables(self, block_ids: BlockIds, start: int, end: int) -> BlockIds:
        sizes = self._settings.block_sizes
        return tuple(list(ids[start // size : end // size]) for ids, size in zip(block_ids, sizes, strict=True))

    def _store(self, state: RequestState, computed: int, tables: Callable[[str], BlockIds | None]) -> None:
        """Orders what is whole once so many tokens are computed; what there is no room for is left to a later step.

        Drafts that may be rejected are among the computed ones. They have no hash yet.
        """
        request = state.request
        end = min(self._whole_chunks(state), computed // self._chunk_size * self._chunk_size)
        start = state.stored_tokens // self._chunk_size * self._chunk_size
        if end <= start or not self._settings.stores or not state.may_store or state.finished:
            return
        blocks_per_chunk = sum(self._chunk_size // size for size in self._settings.block_sizes)
        num_chunks = max(0, self._most[False] - self._num_kept[False]) // blocks_per_chunk
        end = min(end, start + num_chunks * self._chunk_size)
        block_ids = tables(state.request_id)
        if end <= start or block_ids is None:
            return
        part = self._tables(block_ids, start, end)
        if any(len(ids) * size != end - start for ids, size in zip(part, self._settings.block_sizes, strict=True)):
            return
        state.stored_tokens = end
        state.known_to_depot = True
        self._orders.stores.append(
            StoreOrder(
                operation_id=self._begin(state, part, is_load=False, leases=(), start_token=start),
                request_id=state.request_id,
                session_id=state.session_id,
                chunk_hashes=self._chunk_hashes(state, end),
                chunk_size=self._chunk_size,
                cache_salt=salt_of(request, self._generation),
                adapter=adapter_of(request),
                start_token=start,
                block_ids=part,
                traceparent=traceparent_of(request),
            )
        )

    def _report(
        self, reports: Reports, state: RequestState, block_ids: Sequence[int], num_tokens: int, anew: bool
    ) -> None:
        request = state.request
        if not (anew or state.is_reported) or request.prompt_embeds is not None:
            return
        resumed = anew and state.is_reported
        num_reused = state.local_tokens // self._settings.block_sizes[0] if anew else 0
        start = 0 if anew else state.reported_tokens
        end = min(request.num_computed_tokens + num_tokens, request.num_tokens)
        reports.note(
            Allocation(
                session_id=state.session_id,
                block_ids=block_ids[num_reused:],
                reused_block_ids=block_ids[:num_reused],
                token_ids=request.all_token_ids[start:end],
                resumed=resumed,
            )
        )
        state.is_reported = state.known_to_depot = True
        state.reported_tokens = end

    def _begin(
        self, state: RequestState, tables: BlockIds, *, is_load: bool, leases: tuple[str, ...], start_token: int
    ) -> int:
        """Keeps the blocks for an operation."""
        assert self._pool is not None, "vLLM binds its block pool before it schedules"
        blocks = [self._pool.blocks[block_id] for table in tables for block_id in table]
        self._pool.touch(blocks)
        self._num_kept[is_load] += len(blocks)
        operation_id = next(self._next_operation_id)
        state.operations.add(operation_id)
        self._operations[operation_id] = _Operation(
            state=state,
            is_load=is_load,
            start_token=start_token,
            blocks=blocks,
            leases=leases,
            begun=time.monotonic(),
            workers_left=self._settings.num_workers,
        )
        return operation_id

    def _end(self, operation_id: int, operation: _Operation) -> None:
        """Lets go of the blocks, those of the tail first, as vLLM does: they are the first to be reused."""
        assert self._pool is not None
        del self._operations[operation_id]
        self._num_kept[operation.is_load] -= len(operation.blocks)
        self._pool.free_blocks(reversed(operation.blocks))
        self._asks.release(operation.leases)
        state = operation.state
        state.operations.discard(operation_id)
        if operation.is_load and not operation.failed and state.may_store:
            state.may_load = True  # again, should it be preempted
        self._end_session(state)

    def _end_session(self, state: RequestState) -> None:
        """Ends the session of a request that is over; not before its stores, which that would stop."""
        if not state.finished or state.operations:
            return
        if self._requests.get(state.request_id) is state:
            del self._requests[state.request_id]
        if not state.known_to_depot:
            return
        if self._reports is not None:
            self._reports.end(state.session_id)  # after what was noted of it
        else:
            self._asks.end_session(state.session_id)

    def _give_up(self, state: RequestState) -> None:
        if state.lookup is not None:
            self._asks.give_up(state.lookup)
            state.lookup = None
            self._asking.discard(state)

    def _expire(self) -> None:
        """Lets go of what has been leased for long for requests that vLLM finds no room for."""
        now = time.monotonic()
        for state in list(self._asking):
            lookup = state.lookup
            if lookup is not None and lookup.matched_tokens is not None and now >= lookup.good_until:
                self._give_up(state)

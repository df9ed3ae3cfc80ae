"""The scheduler's side: decides what is loaded and stored. Nothing here waits, and nothing here needs vLLM."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvdepot.connector.allocations import Reports, note_allocation
from kvdepot.connector.block_tables import cut, num_needed, storable
from kvdepot.connector.commands import BlockIds, LoadCommand, StepCommands, StoreCommand, Tables, WorkerReport
from kvdepot.connector.operations import BlockPool, Operations
from kvdepot.connector.pending_lookups import LookupClient, PendingLookups
from kvdepot.connector.request_state import RequestState
from kvdepot.v1.cache_pb2 import Prefix
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.groups import CacheGroup, reported_group
from kvdepot.vllm.identity import salt_of, traceparent_of

logger = logging.getLogger(__name__)

# Requests wait so long at most for the workers' first reports, without which no depot is asked.
FIRST_REPORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """What is fixed at the engine's start."""

    hash_block_size: int
    groups: tuple[CacheGroup, ...]
    num_blocks: int
    num_workers: int
    loads: bool
    stores: bool
    lookup_timeout_seconds: float
    lease_hold_seconds: float
    longest_operation_seconds: float


class SchedulerSide:
    """One engine's requests, and the operations that are not settled."""

    def __init__(
        self, settings: SchedulerSettings, asks: LookupClient, reports: Reports | None, adapters: Adapters
    ) -> None:
        self._settings = settings
        self._asks = asks
        self._reports = reports
        self._adapters = adapters
        self._operations = Operations(settings.num_blocks, settings.num_workers, settings.longest_operation_seconds)
        self._requests: dict[str, RequestState] = {}
        self._lookups = PendingLookups(asks, settings.lookup_timeout_seconds, settings.lease_hold_seconds)
        self._orders = StepCommands()
        self._chunk_sizes: dict[int, int] = {}
        self._chunk_size = 0
        self._first_reports_until: float | None = None
        self._generation = ""
        self._engine_is_stale = False
        self._reported_group = reported_group(settings.groups)

    def __repr__(self) -> str:
        return f"<SchedulerSide {len(self._requests)} requests, {len(self._operations)} operations>"

    def bind(self, pool: BlockPool) -> None:
        """Takes vLLM's block pool."""
        self._operations.bind(pool)

    def arrived(self, request: Any) -> None:
        """A request is new."""
        self._state(request)

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens beyond those can be loaded, and whether they will; None: ask again.

        A request waits for the workers' first reports, and then for answers. Once it has waited for as long as it may,
        it is computed; see `PendingLookups`.
        """
        state = self._state(request)
        state.local_tokens = num_computed_tokens
        if self._awaits_first_reports():
            return None, False
        if request.lora_request is not None and (state.lookup is None or state.lookup.matched_tokens is not None):
            self._check_adapter(state)
        if self._engine_is_stale and num_computed_tokens:
            state.may_store = False  # what it builds on was computed before the reset
        wanted = self._wanted(state)
        if wanted <= num_computed_tokens:
            self._lookups.give_up(state)
            state.stored_tokens = self._operations.stored_end(state, 0)
            return 0, False
        lookup = self._lookups.look(state)
        answer = lookup.matched_tokens if lookup is not None else None  # read once: it may come at any moment
        state.stored_tokens = self._operations.stored_end(state, answer or 0)
        if lookup is None and not self._asks.paused:
            self._ask(state)
        if lookup is None or answer is None:
            return (None if self._lookups.may_wait(state) else 0), False
        matched = min(answer, wanted)
        num_blocks = num_needed(self._settings.groups, num_computed_tokens, matched)
        if not lookup.leases or matched <= num_computed_tokens or not self._operations.is_possible(num_blocks):
            return 0, False
        if num_blocks > self._operations.room(is_load=True):  # loads that are under way end soon, or never
            return (None if self._lookups.may_wait(state) else 0), False
        return matched - num_computed_tokens, True

    def allocated(self, request: Any, block_ids: BlockIds, num_external_tokens: int) -> None:
        """vLLM made room: for the tokens to load, or, if there are none, for others."""
        state = self._state(request)
        state.waited_seconds = 0.0
        if num_external_tokens == 0:
            self._lookups.give_up(state)  # after a load there is none
            return
        lookup = self._lookups.take(state)
        end = state.local_tokens + num_external_tokens
        leases = lookup.leases if lookup is not None else ()
        matched = (lookup.matched_tokens or 0) if lookup is not None else 0
        if not self._chunk_size or end % self._chunk_size or end > matched:
            self._asks.release(leases)  # not what was found: the load fails, and vLLM computes the tokens
            leases = ()
        written = self._tables(block_ids, state.local_tokens, end)
        state.may_load = False  # should it fail, the tokens are computed
        operation_id = self._operations.begin(state, written, is_load=True, leases=leases, start_token=0, end_token=end)
        self._orders.loads.append(
            LoadCommand(
                operation_id=operation_id,
                request_id=state.request_id,
                session_id=state.session_id,
                leases=leases,
                tables=self._tables(block_ids, 0, end),
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
    ) -> StepCommands:
        """What the workers are to do in this step.

        ``tables`` gives a request's whole block tables; ``new_blocks`` are those that requests got in this step, all
        they have where they start anew. In a step in which another connector loads while it computes, requests that
        start anew may not be stored: should that load fail, what they compute is wrong.
        """
        self._lookups.end_step()
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
            if self._reports is not None and self._reported_group is not None:
                for request_id, block_ids, anew in new_blocks:
                    if state := self._requests.get(request_id):
                        num_tokens = num_scheduled_tokens.get(request_id, 0)
                        ids, group = block_ids[self._reported_group], self._settings.groups[self._reported_group]
                        note_allocation(self._reports, state, ids, group.block_size, num_tokens, anew)
        orders, self._orders = self._orders, StepCommands()
        return orders

    def reported(self, report: WorkerReport) -> None:
        """Takes what workers report."""
        self._operations.fail(report.failed)
        for operation in self._operations.settle(report.settled):
            self._asks.release(operation.leases)
            if operation.is_load and not operation.failed and operation.state.may_store:
                operation.state.may_load = True  # again, should it be preempted
            self._end_session(operation.state)
        if report.chunk_sizes:
            self._chunk_sizes_changed(report.chunk_sizes)

    def finished(self, request: Any) -> None:
        """vLLM has finished or aborted a request; it frees the blocks, but for the references of operations."""
        state = self._requests.get(request.request_id)
        if state is None:
            return
        self._lookups.give_up(state)
        state.finished = True
        self._end_session(state)

    def reset(self) -> None:
        """What is stored is not of this model any more: from now on the engine has a salt of its own.

        Until `emptied`, vLLM's own cache may hold what was computed before: nothing that builds on it is stored.
        """
        self._generation = uuid.uuid4().hex
        self._engine_is_stale = True
        for state in self._requests.values():
            self._lookups.give_up(state)
            state.may_load = state.may_store = False

    def emptied(self) -> None:
        """vLLM has emptied its own cache."""
        self._engine_is_stale = False
        self._adapters.emptied()

    def needs_steps(self) -> bool:
        """Whether vLLM should step on, so that workers report: for the first time, or see `Operations.need_steps`."""
        return self._operations.need_steps() or self._awaits_first_reports()

    def _awaits_first_reports(self) -> bool:
        """Whether a worker has not reported yet if it is attached. Workers do so in the engine's first step.

        The first call starts the clock: an engine may need minutes until it can make a step.
        """
        if len(self._chunk_sizes) == self._settings.num_workers:
            return False
        now = time.monotonic()
        if self._first_reports_until is None:
            self._first_reports_until = now + FIRST_REPORT_SECONDS
        return now < self._first_reports_until

    def _chunk_sizes_changed(self, chunk_sizes: Mapping[int, int]) -> None:
        """Workers report how the depot cuts tokens into chunks; 0 if they are not attached."""
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

    def _state(self, request: Any) -> RequestState:
        state = self._requests.get(request.request_id)
        if state is None or state.finished:  # an id may come again while operations of the last one are under way
            adapter = self._adapters.identity_of(request.lora_request)
            session_id = self._asks.open_session(request)
            state = self._requests[request.request_id] = RequestState(request, session_id, adapter)
        return state

    def _ask(self, state: RequestState) -> None:
        """Asks for all chunks that are known, to learn of all that is stored."""
        request = state.request
        prefix = Prefix(
            block_hashes=self._chunk_hashes(state, self._whole_chunks(state, request.num_tokens)),
            hash_block_size=self._chunk_size,
            cache_salt=salt_of(request, self._generation),
            adapter=state.adapter or "",
        )
        self._lookups.begin(state, prefix, traceparent_of(request))

    def _check_adapter(self, state: RequestState) -> None:
        """KV of an adapter that is not known, or not the one that the request came for, is neither loaded nor stored.

        Nor is KV that goes on from vLLM's own prefix cache, which may have it of an adapter that was replaced.
        """
        lora = state.request.lora_request
        is_known = state.adapter is not None and self._adapters.identity_of(lora) == state.adapter
        if not is_known or (state.local_tokens and self._adapters.has_changed(lora)):
            state.may_load = state.may_store = False

    def _whole_chunks(self, state: RequestState, most_tokens: int) -> int:
        """Tokens of the whole chunks within those whose hashes are known; 0 while there is no depot."""
        if not self._chunk_size:
            return 0
        known: int = min(len(state.request.block_hashes) * self._settings.hash_block_size, most_tokens)
        return known // self._chunk_size * self._chunk_size

    def _wanted(self, state: RequestState) -> int:
        """Tokens that may be loaded, if the depot has them, those that vLLM has itself included.

        Of a prompt that is loaded as a whole vLLM computes the last token again, without what a window had then.
        """
        request = state.request
        if not self._settings.loads or not state.may_load or request.skip_reading_prefix_cache:
            return 0
        num_tokens: int = request.num_tokens
        is_full = all(group.is_full for group in self._settings.groups)
        return self._whole_chunks(state, num_tokens if is_full else num_tokens - 1)

    def _chunk_hashes(self, state: RequestState, end: int) -> list[bytes]:
        """The hash of each chunk's last block, which covers all tokens up to there."""
        per_chunk = self._chunk_size // self._settings.hash_block_size
        hashes: list[bytes] = state.request.block_hashes[
            per_chunk - 1 : end // self._settings.hash_block_size : per_chunk
        ]
        return hashes

    def _tables(self, block_ids: BlockIds, start: int, end: int) -> Tables:
        return cut(self._settings.groups, block_ids, start, end, self._operations.null_block_id)

    def _store(self, state: RequestState, computed: int, tables: Callable[[str], BlockIds | None]) -> None:
        """Orders what is whole once so many tokens are computed; what there is no room for is left to a later step.

        Drafts that may be rejected are among the computed ones. They have no hash yet.
        """
        request = state.request
        end = min(self._whole_chunks(state, request.num_tokens), computed // self._chunk_size * self._chunk_size)
        start = state.stored_tokens // self._chunk_size * self._chunk_size
        if end <= start or not self._settings.stores or not state.may_store or state.finished:
            return
        room = self._operations.room(is_load=False)
        block_ids = tables(state.request_id) if room else None
        groups = self._settings.groups
        if block_ids is None or any(
            len(ids) * group.block_size < end for ids, group in zip(block_ids, groups, strict=True)
        ):
            return
        start, end = storable(groups, self._tables(block_ids, start, end), start, end, self._chunk_size, room)
        state.stored_tokens = end
        if end <= start:
            return
        if request.lora_request is not None:
            self._check_adapter(state)
            if not state.may_store:
                return
        part = self._tables(block_ids, start, end)
        state.known_to_depot = True
        operation_id = self._operations.begin(state, part, is_load=False, leases=(), start_token=start, end_token=end)
        self._orders.stores.append(
            StoreCommand(
                operation_id=operation_id,
                request_id=state.request_id,
                session_id=state.session_id,
                chunk_hashes=self._chunk_hashes(state, end),
                chunk_size=self._chunk_size,
                cache_salt=salt_of(request, self._generation),
                adapter=state.adapter or "",
                start_token=start,
                tables=part,
                traceparent=traceparent_of(request),
            )
        )

    def _end_session(self, state: RequestState) -> None:
        """Ends the session of a request that is over; not before its stores, which that would stop."""
        if not state.finished or state.operations:
            return
        if self._requests.get(state.request_id) is state:
            del self._requests[state.request_id]
        if not state.known_to_depot:
            self._asks.drop_session(state.session_id)
        elif self._reports is not None:
            self._reports.end(state.session_id)  # after what was noted of it
        else:
            self._asks.end_session(state.session_id)

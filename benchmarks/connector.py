"""Measure what the connector adds to a scheduler's step: 256 requests that decode, with and without block reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from benchmarks.figures import Figure, Goal
from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, WorkerReport
from kvdepot.connector.lookups import PendingLookup
from kvdepot.connector.request_state import RequestTraits
from kvdepot.connector.scheduler import ConnectorScheduler
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.v1.cache_pb2 import Prefix

REQUESTS = 256
PROMPT_TOKENS = 8_192
BLOCK_SIZE = 16
CHUNK_SIZE = 256
ROUNDS = 200


@dataclass(eq=False, slots=True)
class _Request:
    """As much of a request as the connector reads."""

    request_id: str
    all_token_ids: list[int]
    block_hashes: list[bytes]
    num_computed_tokens: int
    blocks: list[int]

    @property
    def num_prompt_tokens(self) -> int:
        return PROMPT_TOKENS

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


class _UncountedReferences:
    """A block pool without reference counts."""

    null_block_id = -1

    def hold(self, block_ids: Sequence[int]) -> None: ...

    def release(self, block_ids: Iterable[int]) -> None: ...


class _UnusedLookupClient:
    """Looks nothing up, because no new request arrives."""

    paused = True

    def open_session(self, request_id: str) -> str:
        return request_id

    def begin(
        self,
        session_id: str,
        prefix: Prefix,
        computed_tokens: int,
        parent: str,
        prefill_rate: float | None,
        will_continue: bool | None,
    ) -> PendingLookup:
        raise AssertionError(session_id)

    def give_up(self, lookup: PendingLookup) -> None: ...

    def release(self, leases: Sequence[str]) -> None: ...

    def end_session(self, session_id: str) -> None: ...

    def forget_session(self, session_id: str) -> None: ...


@dataclass(slots=True)
class _UnsentReports:
    """Takes reports as the real queue does; nothing sends them."""

    allocations: list[BlockAllocation] = field(default_factory=list)

    def report(self, allocation: BlockAllocation) -> None:
        self.allocations.append(allocation)

    def end_session(self, session_id: str) -> None: ...


async def measure() -> list[Figure]:
    """Measure microseconds per step; in each, 16 requests get a block and one stores a chunk."""
    without, with_reports = (_steps(reports) for reports in (None, _UnsentReports()))
    return [
        Figure(what=f"step of {REQUESTS} requests", unit="µs", values=without, goal=Goal(at_most=250)),
        Figure(what="the same with block reports", unit="µs", values=with_reports, goal=Goal(at_most=250)),
    ]


def _steps(reports: _UnsentReports | None) -> list[float]:
    num_blocks = REQUESTS * (PROMPT_TOKENS + REQUESTS + ROUNDS) // BLOCK_SIZE + REQUESTS
    scheduler = ConnectorScheduler(
        SchedulerSettings(
            hash_block_size=BLOCK_SIZE,
            groups=(CacheGroup(block_size=BLOCK_SIZE),),
            num_blocks=num_blocks,
            num_workers=1,
            loads=True,
            stores=True,
            lookup_timeout_seconds=1.0,
            lease_hold_seconds=5.0,
            longest_transfer_seconds=30.0,
            prefill_tokens_per_second=0.0,
            steps_ahead=1,
        ),
        _UnusedLookupClient(),
        reports,
        lambda _: RequestTraits(),
    )
    scheduler.bind(_UncountedReferences())
    scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK_SIZE}))
    free = count()
    requests = {}
    for number in range(REQUESTS):  # each at another offset in its chunk and block
        tokens = PROMPT_TOKENS + number
        hashes = [bytes(32)] * (tokens // BLOCK_SIZE)
        blocks = [next(free) for _ in range(-(-tokens // BLOCK_SIZE))]
        request = _Request(f"request-{number}", [7] * tokens, hashes, tokens - 1, blocks)
        requests[request.request_id] = request
        scheduler.arrived(request)
    scheduled = dict.fromkeys(requests, 1)

    def tables(request_id: str) -> BlockIds:
        return (requests[request_id].blocks,)

    transfer_ids = count(1)

    def mark_done(stores: int) -> None:
        report = WorkerReport()
        report.done.update(next(transfer_ids) for _ in range(stores))
        scheduler.reported(report)

    commands = scheduler.step(scheduled, tables, [(each, tables(each), True) for each in requests], may_store=True)
    while commands.stores:  # the prompts, bit by bit
        mark_done(len(commands.stores))
        commands = scheduler.step(scheduled, tables, [], may_store=True)
    seconds = []
    for _ in range(ROUNDS):
        new_blocks = []
        for request in requests.values():  # what vLLM does between two steps
            request.num_computed_tokens += 1
            request.all_token_ids.append(7)
            if request.num_tokens % BLOCK_SIZE == 0:
                request.block_hashes.append(bytes(32))
            if request.num_tokens % BLOCK_SIZE == 1:
                request.blocks.append(next(free))
                new_blocks.append((request.request_id, (request.blocks[-1:],), False))
        begin = time.perf_counter()
        commands = scheduler.step(scheduled, tables, new_blocks, may_store=True)
        mark_done(len(commands.stores))
        seconds.append(time.perf_counter() - begin)
    return [each * 1e6 for each in seconds]

"""What the vLLM connector takes of a scheduler's step: 256 requests that decode, with and without block reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

from benchmarks.figures import Figure, Goal
from kvdepot.connector.allocations import Allocation
from kvdepot.connector.commands import BlockIds, WorkerReport
from kvdepot.connector.lookups import Lookup
from kvdepot.v1.cache_pb2 import Prefix
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.groups import CacheGroup
from kvdepot.vllm.scheduler import SchedulerSettings, SchedulerSide

REQUESTS = 256
PROMPT_TOKENS = 8_192
BLOCK_SIZE = 16
CHUNK_SIZE = 256
ROUNDS = 200


@dataclass(eq=False, slots=True)
class _Request:
    """As much of a request as the connector looks at."""

    request_id: str
    all_token_ids: list[int]
    block_hashes: list[bytes]
    num_computed_tokens: int
    blocks: list[int]
    cache_salt: None = None
    lora_request: None = None
    trace_headers: None = None
    prompt_embeds: None = None

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)


class _Pool:
    """Blocks that nobody counts."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks = range(num_blocks)
        self.null_block = SimpleNamespace(block_id=num_blocks)

    def touch(self, blocks: Sequence[Any]) -> None: ...

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None: ...


class _Nobody:
    """A depot that is never asked, since nothing new arrives."""

    paused = True

    def open_session(self, request: _Request) -> str:
        return request.request_id

    def begin(self, session_id: str, prefix: Prefix, computed_tokens: int, parent: str) -> Lookup:
        raise AssertionError(session_id)

    def give_up(self, lookup: Lookup) -> None: ...

    def release(self, leases: Sequence[str]) -> None: ...

    def end_session(self, session_id: str) -> None: ...

    def drop_session(self, session_id: str) -> None: ...


@dataclass(slots=True)
class _Queue:
    """Takes reports as the real queue does; nothing sends them."""

    allocations: list[Allocation] = field(default_factory=list)

    def note(self, allocation: Allocation) -> None:
        self.allocations.append(allocation)

    def end(self, session_id: str) -> None: ...


async def measure() -> list[Figure]:
    """Microseconds per step; in each, 16 requests get a block and one stores a chunk."""
    without, with_reports = (_steps(reports) for reports in (None, _Queue()))
    return [
        Figure(what=f"step of {REQUESTS} requests", unit="µs", values=without, goal=Goal(at_most=250)),
        Figure(what="the same with block reports", unit="µs", values=with_reports, goal=Goal(at_most=250)),
    ]


def _steps(reports: _Queue | None) -> list[float]:
    num_blocks = REQUESTS * (PROMPT_TOKENS + REQUESTS + ROUNDS) // BLOCK_SIZE + REQUESTS
    side = SchedulerSide(
        SchedulerSettings(
            hash_block_size=BLOCK_SIZE,
            groups=(CacheGroup(block_size=BLOCK_SIZE),),
            num_blocks=num_blocks,
            num_workers=1,
            loads=True,
            stores=True,
            lookup_timeout_seconds=1.0,
            lease_hold_seconds=5.0,
            longest_operation_seconds=30.0,
        ),
        _Nobody(),
        reports,
        Adapters(),
    )
    side.bind(_Pool(num_blocks))
    side.reported(WorkerReport(chunk_sizes={0: CHUNK_SIZE}))
    free = count()
    requests = {}
    for number in range(REQUESTS):  # each at another place in its chunk and block
        tokens = PROMPT_TOKENS + number
        hashes = [bytes(32)] * (tokens // BLOCK_SIZE)
        blocks = [next(free) for _ in range(-(-tokens // BLOCK_SIZE))]
        request = _Request(f"request-{number}", [7] * tokens, hashes, tokens - 1, blocks)
        requests[request.request_id] = request
        side.arrived(request)
    scheduled = dict.fromkeys(requests, 1)

    def tables(request_id: str) -> BlockIds:
        return (requests[request_id].blocks,)

    operations = count(1)

    def settle(stores: int) -> None:
        report = WorkerReport()
        report.settled.update(next(operations) for _ in range(stores))
        side.reported(report)

    orders = side.step(scheduled, tables, [(each, tables(each), True) for each in requests], may_store=True)
    while orders.stores:  # the prompts, bit by bit
        settle(len(orders.stores))
        orders = side.step(scheduled, tables, [], may_store=True)
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
        orders = side.step(scheduled, tables, new_blocks, may_store=True)
        settle(len(orders.stores))
        seconds.append(time.perf_counter() - begin)
    return [each * 1e6 for each in seconds]

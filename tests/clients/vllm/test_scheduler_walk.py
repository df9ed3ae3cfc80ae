"""Whatever the order of things, blocks and leases are held by something that lives, and nothing is left in the end."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvdepot.connector.commands import BlockIds, LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.operations import Operation
from kvdepot.vllm.groups import CacheGroup
from tests.fakes.vllm import BLOCK, CHUNK, Engine, Request

MOST_BLOCKS = 10  # of a request, in each group
WORKERS = 2


def num_dropped(group: CacheGroup, num_computed_tokens: int) -> int:
    """Blocks that vLLM has put the null block in the place of, once so many tokens are computed."""
    if group.local_chunk is not None:
        return num_computed_tokens // group.local_chunk * group.local_chunk // BLOCK
    return 0 if group.window is None else max(0, num_computed_tokens - group.window) // BLOCK


class SchedulerWalk(RuleBasedStateMachine):
    """vLLM's scheduler, two workers and a depot, none of which waits for another."""

    groups: tuple[CacheGroup, ...] = (CacheGroup(block_size=BLOCK),)

    def __init__(self) -> None:
        super().__init__()
        self.num_blocks = 1 + 6 * MOST_BLOCKS * len(self.groups)
        self.engine = Engine(num_blocks=self.num_blocks, num_workers=WORKERS, groups=self.groups)
        self.requests: dict[str, Request] = {}
        self.loading: dict[str, int] = {}
        self.orders: dict[int, LoadCommand | StoreCommand] = {}
        self.left: Counter[int] = Counter()
        self.count = 0

    def idle(self) -> list[Request]:
        return [request for name, request in self.requests.items() if name not in self.loading]

    @rule(num_tokens=st.one_of(st.integers(1, 40), st.integers(33, 40)))
    @precondition(lambda self: len(self.requests) < 4)
    def arrive(self, num_tokens: int) -> None:
        self.count += 1
        request = Request(request_id=f"request-{self.count}", tokens=list(range(num_tokens)))
        self.requests[request.request_id] = request
        self.engine.arrived.add(request.request_id)
        self.drop(request)
        self.engine.side.arrived(request)

    def drop(self, request: Request, num_computed_tokens: int = 0) -> BlockIds:
        """The request's tables once so many tokens are computed."""
        place = 1 + int(request.request_id.split("-")[1]) % 5 * MOST_BLOCKS * len(self.groups)
        tables = []
        for number, group in enumerate(self.groups):
            first = place + number * MOST_BLOCKS
            ids = list(range(first, first + MOST_BLOCKS))
            dropped = num_dropped(group, num_computed_tokens)
            tables.append([0] * dropped + ids[dropped:])
        self.engine.tables[request.request_id] = tuple(tables)
        return tuple(tables)

    @rule(data=st.data(), local=st.integers(0, 4), room=st.booleans(), chosen=st.booleans())
    @precondition(lambda self: self.idle())
    def ask(self, data: st.DataObject, local: int, room: bool, chosen: bool) -> None:
        request = data.draw(st.sampled_from(self.idle()))
        local_tokens = min(local * BLOCK, request.num_tokens // BLOCK * BLOCK)
        found, asynchronous = self.engine.side.matched_tokens(request, local_tokens)
        assert asynchronous == bool(found)
        if found is None or not room:
            return
        is_hybrid = len(self.groups) > 1
        assert local_tokens + found <= request.num_tokens - (is_hybrid and found > 0)
        external = found if chosen else 0
        self.engine.side.allocated(request, self.drop(request, local_tokens + external), external)
        request.num_computed_tokens = local_tokens + external
        if external:
            self.loading[request.request_id] = 0

    @rule(chunks=st.integers(0, 5), good=st.booleans())
    @precondition(lambda self: any(each.lookup.matched_tokens is None for each in self.engine.asks.questions))
    def answer(self, chunks: int, good: bool) -> None:
        open_ = [each for each in self.engine.asks.questions if each.lookup.matched_tokens is None]
        self.engine.asks.questions.remove(open_[0])
        self.engine.asks.questions.append(open_[0])
        matched = min(chunks, len(open_[0].prefix.block_hashes)) * CHUNK
        self.engine.asks.answer(matched, good_for_seconds=60.0 if good else -1.0)

    @rule(num_tokens=st.integers(1, 16), may_store=st.booleans())
    def step(self, num_tokens: int, may_store: bool) -> None:
        scheduled = {}
        for request in self.idle():
            if count := min(num_tokens, request.num_tokens - request.num_computed_tokens):
                scheduled[request] = count
                self.drop(request, request.num_computed_tokens)
        new = [(request.request_id, self.engine.tables[request.request_id], True) for request in scheduled]
        orders = self.engine.step(scheduled, new if not may_store else [], may_store=may_store)
        for order in [*orders.loads, *orders.stores]:
            self.orders[order.operation_id] = order
            self.check(order)
            self.left[order.operation_id] = WORKERS
            if isinstance(order, LoadCommand) and order.request_id in self.loading:
                self.loading[order.request_id] = order.operation_id

    def check(self, order: LoadCommand | StoreCommand) -> None:
        """What is stored is enough for each hit that ends in it; a load fills what vLLM has made room for."""
        for table, group in zip(order.tables, self.groups, strict=True):
            assert 0 not in table.block_ids
            if isinstance(order, LoadCommand):
                assert table.absent_blocks == num_dropped(group, order.num_tokens)
                assert len(table.block_ids) == order.num_tokens // BLOCK - table.absent_blocks
                continue
            end = len(order.chunk_hashes) * order.chunk_size
            first = order.start_token // BLOCK + table.absent_blocks
            assert first + len(table.block_ids) == end // BLOCK
            for chunk_end in range(order.start_token + order.chunk_size, end + 1, order.chunk_size):
                needed = max(num_dropped(group, chunk_end), (chunk_end - order.chunk_size) // BLOCK)
                assert first <= needed, "a hit that ends with this chunk would lack blocks"

    @rule(data=st.data(), failed=st.booleans())
    @precondition(lambda self: self.orders)
    def settle(self, data: st.DataObject, failed: bool) -> None:
        operation_id = data.draw(st.sampled_from(sorted(self.orders)))
        self.engine.settle(operation_id, failed=[operation_id] if failed else [])
        self.left[operation_id] -= 1
        order = self.orders[operation_id]
        if self.left[operation_id] == 0:
            del self.orders[operation_id]
            if isinstance(order, LoadCommand) and self.loading.get(order.request_id) == operation_id:
                del self.loading[order.request_id]
                request = self.requests.get(order.request_id)
                if request is not None and not failed:
                    self.engine.side.allocated(request, self.engine.tables[request.request_id], 0)  # the second call
                elif request is not None:
                    request.num_computed_tokens = 0

    @rule(data=st.data())
    @precondition(lambda self: self.idle())
    def preempt(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.idle())).num_computed_tokens = 0

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def finish(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(list(self.requests.values())))
        del self.requests[request.request_id]
        self.loading.pop(request.request_id, None)
        self.engine.side.finished(request)

    @rule()
    def all_stores_fail(self) -> None:
        """They are to be stored once more, from blocks that a window may have left meanwhile."""
        stores = [number for number, order in self.orders.items() if isinstance(order, StoreCommand)]
        self.engine.side.reported(WorkerReport(failed=set(stores)))

    @rule(trouble=st.sampled_from(["one worker detaches", "another depot", "reset", "late answer"]))
    def trouble(self, trouble: str) -> None:
        match trouble:
            case "one worker detaches":
                self.engine.side.reported(WorkerReport(chunk_sizes={0: 0}))
            case "another depot":
                self.engine.side.reported(WorkerReport(chunk_sizes=dict.fromkeys(range(WORKERS), 2 * CHUNK)))
            case "reset":
                self.engine.side.reset()
            case "late answer":
                for question in self.engine.asks.questions:
                    question.lookup.deadline = time.monotonic()

    @rule()
    def all_is_well(self) -> None:
        self.engine.side.reported(WorkerReport(chunk_sizes=dict.fromkeys(range(WORKERS), CHUNK)))

    def operations(self) -> list[Operation]:
        return list(self.engine.side._operations._operations.values())

    @invariant()
    def blocks_are_kept_for_operations_alone(self) -> None:
        kept: Counter[int] = Counter()
        for operation in self.operations():
            kept.update(block.block_id for block in operation.blocks)
        assert kept == Counter(self.engine.pool.kept)
        num_loading = sum(len(each.blocks) for each in self.operations() if each.is_load)
        assert num_loading <= self.num_blocks // 2
        assert kept.total() - num_loading <= self.num_blocks // 4

    @invariant()
    def leases_are_held_by_lookups_and_loads_alone(self) -> None:
        lookups = [state.lookup for state in self.engine.side._requests.values() if state.lookup is not None]
        held = [lease for lookup in lookups for lease in lookup.leases]
        held += [lease for operation in self.operations() for lease in operation.leases]
        assert sorted(held) == sorted(self.engine.asks.leased)

    def teardown(self) -> None:
        for request in list(self.requests.values()):
            self.engine.side.finished(request)
        self.requests.clear()
        self.loading.clear()
        for order in [*(orders := self.engine.step({})).loads, *orders.stores]:
            self.left[order.operation_id] = WORKERS
        for operation_id, workers in self.left.items():
            for _ in range(workers):
                self.engine.settle(operation_id)
        while any(each.lookup.matched_tokens is None for each in self.engine.asks.questions):
            self.answer(1, True)
        assert not self.engine.pool.kept
        assert not self.engine.asks.leased
        assert not self.engine.side._requests
        assert not self.engine.side._operations


class WindowsWalk(SchedulerWalk):
    """The same with layers that keep a part of a prefix only."""

    groups = (
        CacheGroup(block_size=BLOCK),
        CacheGroup(block_size=BLOCK, window=9),
        CacheGroup(block_size=BLOCK, window=3),
        CacheGroup(block_size=BLOCK, local_chunk=12),
    )


for walk in (SchedulerWalk, WindowsWalk):
    walk.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_scheduler_walk = SchedulerWalk.TestCase
test_windows_walk = WindowsWalk.TestCase

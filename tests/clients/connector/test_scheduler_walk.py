"""In any order of events, only live requests and transfers hold blocks and leases, and nothing is left at the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvdepot.connector.block_transfers import BlockTransfer
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, LoadCommand, StepCommands, StoreCommand, WorkerReport
from tests.fakes.vllm import BLOCK, CHUNK, Request, SchedulerDriver

MOST_BLOCKS = 10  # of a request, in each group
WORKERS = 2


def num_dropped(group: CacheGroup, num_computed_tokens: int) -> int:
    """Return how many blocks vLLM has replaced by the null block once this many tokens are computed."""
    if group.local_chunk is not None:
        return num_computed_tokens // group.local_chunk * group.local_chunk // BLOCK
    return 0 if group.window is None else max(0, num_computed_tokens - group.window) // BLOCK


def all_of(commands: StepCommands) -> list[LoadCommand | StoreCommand]:
    return [*commands.loads, *commands.stores]


class SchedulerWalk(RuleBasedStateMachine):
    """vLLM's scheduler, two workers and a depot; none waits for another."""

    groups: tuple[CacheGroup, ...] = (CacheGroup(block_size=BLOCK),)

    def __init__(self) -> None:
        super().__init__()
        self.num_blocks = 1 + 6 * MOST_BLOCKS * len(self.groups)
        self.driver = SchedulerDriver(
            num_blocks=self.num_blocks, num_workers=WORKERS, groups=self.groups, training_run="run"
        )
        self.requests: dict[str, Request] = {}
        self.loading: dict[str, int] = {}
        self.commands: dict[int, LoadCommand | StoreCommand] = {}
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
        self.driver.arrived.add(request.request_id)
        self.drop(request)
        self.driver.scheduler.arrived(request)

    def drop(self, request: Request, num_computed_tokens: int = 0) -> BlockIds:
        """Return the request's tables once this many tokens are computed."""
        offset = 1 + int(request.request_id.split("-")[1]) % 5 * MOST_BLOCKS * len(self.groups)
        tables = []
        for number, group in enumerate(self.groups):
            first = offset + number * MOST_BLOCKS
            ids = list(range(first, first + MOST_BLOCKS))
            dropped = num_dropped(group, num_computed_tokens)
            tables.append([0] * dropped + ids[dropped:])
        self.driver.tables[request.request_id] = tuple(tables)
        return tuple(tables)

    @rule(data=st.data(), local=st.integers(0, 4), blocks_are_free=st.booleans(), chosen=st.booleans())
    @precondition(lambda self: self.idle())
    def ask(self, data: st.DataObject, local: int, blocks_are_free: bool, chosen: bool) -> None:
        request = data.draw(st.sampled_from(self.idle()))
        local_tokens = min(local * BLOCK, request.num_tokens // BLOCK * BLOCK)
        found = self.driver.scheduler.matched_tokens(request, local_tokens)
        if found is None or not blocks_are_free:
            return
        is_hybrid = len(self.groups) > 1
        assert local_tokens + found <= request.num_tokens - (is_hybrid and found > 0)
        external = found if chosen else 0
        self.driver.scheduler.allocated(request, self.drop(request, local_tokens + external), external)
        request.num_computed_tokens = local_tokens + external
        if external:
            self.loading[request.request_id] = 0

    @rule(chunks=st.integers(0, 5), good=st.booleans())
    @precondition(lambda self: any(each.lookup.matched_tokens is None for each in self.driver.lookup_client.calls))
    def answer(self, chunks: int, good: bool) -> None:
        open_ = [each for each in self.driver.lookup_client.calls if each.lookup.matched_tokens is None]
        self.driver.lookup_client.calls.remove(open_[0])
        self.driver.lookup_client.calls.append(open_[0])
        matched = min(chunks, len(open_[0].prefix.block_hashes)) * CHUNK
        self.driver.lookup_client.answer(matched, good_for_seconds=60.0 if good else -1.0)

    @rule(num_tokens=st.integers(1, 16), may_store=st.booleans())
    def step(self, num_tokens: int, may_store: bool) -> None:
        scheduled = {}
        for request in self.idle():
            if count := min(num_tokens, request.num_tokens - request.num_computed_tokens):
                scheduled[request] = count
                self.drop(request, request.num_computed_tokens)
        new = [(request.request_id, self.driver.tables[request.request_id], True) for request in scheduled]
        commands = self.driver.step(scheduled, new if not may_store else [], may_store=may_store)
        for command in all_of(commands):
            self.commands[command.transfer_id] = command
            self.check(command)
            self.left[command.transfer_id] = WORKERS
            if isinstance(command, LoadCommand) and command.request_id in self.loading:
                self.loading[command.request_id] = command.transfer_id

    def check(self, command: LoadCommand | StoreCommand) -> None:
        """Check that a store serves each hit that ends in it, and that a load fills the blocks that vLLM allocated."""
        for table, group in zip(command.tables, self.groups, strict=True):
            assert 0 not in table.block_ids
            if isinstance(command, LoadCommand):
                assert table.absent_blocks == num_dropped(group, command.num_tokens)
                assert len(table.block_ids) == command.num_tokens // BLOCK - table.absent_blocks
                continue
            end = len(command.chunk_hashes) * command.chunk_size
            first = command.start_token // BLOCK + table.absent_blocks
            assert first + len(table.block_ids) == end // BLOCK
            for chunk_end in range(command.start_token + command.chunk_size, end + 1, command.chunk_size):
                needed = max(num_dropped(group, chunk_end), (chunk_end - command.chunk_size) // BLOCK)
                assert first <= needed, "a hit that ends with this chunk would lack blocks"

    @rule(data=st.data(), failed=st.booleans(), loses=st.booleans())
    @precondition(lambda self: self.commands)
    def end_transfer(self, data: st.DataObject, failed: bool, loses: bool) -> None:
        transfer_id = data.draw(st.sampled_from(sorted(self.commands)))
        command = self.commands[transfer_id]
        partial = {}
        if loses and isinstance(command, LoadCommand) and command.may_be_partial and command.leases:
            partial[transfer_id] = data.draw(st.integers(command.skip_tokens + 1, command.num_tokens))
            request = self.requests.get(command.request_id)
            if request is not None and self.loading.get(command.request_id) == transfer_id:
                request.num_computed_tokens = min(request.num_computed_tokens, partial[transfer_id] // BLOCK * BLOCK)
        self.driver.mark_done(transfer_id, failed=[transfer_id] if failed else [], partial=partial)
        self.left[transfer_id] -= 1
        if self.left[transfer_id] == 0:
            del self.commands[transfer_id]
            if isinstance(command, LoadCommand) and self.loading.get(command.request_id) == transfer_id:
                del self.loading[command.request_id]
                request = self.requests.get(command.request_id)
                if request is not None and not failed:
                    # vLLM's second call, after the load
                    self.driver.scheduler.allocated(request, self.driver.tables[request.request_id], 0)
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
        self.driver.scheduler.finished(request)

    @rule()
    def all_stores_fail(self) -> None:
        """All chunks are stored again, from blocks that a window may have left meanwhile."""
        stores = [number for number, command in self.commands.items() if isinstance(command, StoreCommand)]
        self.driver.scheduler.reported(WorkerReport(failed=set(stores)))

    @rule(trouble=st.sampled_from(["one worker detaches", "another depot", "reset", "update", "late answer"]))
    def trouble(self, trouble: str) -> None:
        match trouble:
            case "one worker detaches":
                self.driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
            case "another depot":
                self.driver.scheduler.reported(WorkerReport(chunk_sizes=dict.fromkeys(range(WORKERS), 2 * CHUNK)))
            case "reset":
                self.driver.scheduler.reset()
            case "update":
                self.driver.scheduler.weights_changed("1", "an update")
            case "late answer":
                for call in self.driver.lookup_client.calls:
                    call.lookup.deadline = self.driver.clock.now

    @rule()
    def all_is_well(self) -> None:
        self.driver.scheduler.reported(WorkerReport(chunk_sizes=dict.fromkeys(range(WORKERS), CHUNK)))

    def transfers(self) -> list[BlockTransfer]:
        return list(self.driver.scheduler._transfers._transfers.values())

    @invariant()
    def only_transfers_hold_blocks(self) -> None:
        kept: Counter[int] = Counter()
        for transfer in self.transfers():
            kept.update(transfer.block_ids)
        assert kept == Counter(self.driver.pool.kept)
        num_loading = sum(len(each.block_ids) for each in self.transfers() if each.is_load)
        assert num_loading <= self.num_blocks // 2
        assert kept.total() - num_loading <= self.num_blocks // 4

    @invariant()
    def only_lookups_and_loads_hold_leases(self) -> None:
        lookups = [state.lookup for state in self.driver.scheduler._requests.values() if state.lookup is not None]
        leases = [lease for lookup in lookups for lease in lookup.leases]
        leases += [lease for transfer in self.transfers() for lease in transfer.leases]
        assert sorted(leases) == sorted(self.driver.lookup_client.leased)

    def teardown(self) -> None:
        for request in list(self.requests.values()):
            self.driver.scheduler.finished(request)
        self.requests.clear()
        self.loading.clear()
        for command in all_of(self.driver.step({})):
            self.left[command.transfer_id] = WORKERS
        for transfer_id, workers in self.left.items():
            for _ in range(workers):
                self.driver.mark_done(transfer_id)
        while any(each.lookup.matched_tokens is None for each in self.driver.lookup_client.calls):
            self.answer(1, True)
        assert not self.driver.pool.kept
        assert not self.driver.lookup_client.leased
        assert not self.driver.scheduler._requests
        assert not self.driver.scheduler._transfers


class WindowsWalk(SchedulerWalk):
    """The same with layers that keep a part of a prefix only."""

    groups = (
        CacheGroup(block_size=BLOCK),
        CacheGroup(block_size=BLOCK, window=9),
        CacheGroup(block_size=BLOCK, window=3),
        CacheGroup(block_size=BLOCK, local_chunk=12),
    )


for walk in (SchedulerWalk, WindowsWalk):
    walk.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_scheduler_walk = SchedulerWalk.TestCase
test_windows_walk = WindowsWalk.TestCase

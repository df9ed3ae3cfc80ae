"""The blocks that an engine publishes: a reader's picture, and what the engine knows of its depot."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvdepot.connector import published_blocks
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import WorkerReport
from kvdepot.connector.published_blocks import BlockChanges, PublishedBlocks, block_hashes
from tests.fakes.vllm import BLOCK, CHUNK, TABLE, Request, SchedulerDriver, embeddings_of, request_of


class Reader:
    """A router: it applies the changes in their order."""

    def __init__(self) -> None:
        self.blocks: set[bytes] = set()
        self.tokens: list[list[int]] = []

    def read(self, changes: BlockChanges) -> None:
        for stored in changes.stored:
            request, start, end = stored.request, stored.start_token, stored.end_token
            hashes = block_hashes(request, start, end, BLOCK, BLOCK)
            assert len(hashes) == (end - start) // BLOCK
            self.blocks.update(hashes)
            self.tokens.append(list(request.all_token_ids[start:end]))
        self.blocks.difference_update(changes.removed_hashes)


@pytest.fixture
def driver() -> SchedulerDriver:
    return SchedulerDriver(publishes_blocks=True)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def store(driver: SchedulerDriver, request: Request, *, failed: bool = False) -> None:
    driver.tables[request.request_id] = TABLE
    (command,) = driver.step({request: request.num_tokens}).stores
    driver.mark_done(command.transfer_id, failed=[command.transfer_id] if failed else [])


def look_up(driver: SchedulerDriver, request: Request, matched: int, *, is_absent: bool = True) -> None:
    """Let the engine admit a request for which the depot has found this much."""
    driver.scheduler.matched_tokens(request, 0)
    lookup = driver.lookup_client.answer(matched)
    lookup.is_absent = is_absent
    found = driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.allocated(request, TABLE, found or 0)


def test_stored_chunks_are_published_once_with_their_tokens(driver: SchedulerDriver, reader: Reader) -> None:
    first, second = request_of(20, "first"), request_of(30, "second")
    store(driver, first)
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(first.block_hashes[:4])
    assert reader.tokens == [list(range(16))]
    store(driver, second)  # it has the same 16 tokens, and 8 more
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(second.block_hashes[:6])
    assert reader.tokens == [list(range(16)), list(range(16, 24))]
    assert driver.scheduler.take_block_changes() == BlockChanges()


def test_blocks_are_published_behind_their_parents_whichever_store_ends_first() -> None:
    blocks, request = PublishedBlocks(BLOCK, BLOCK), request_of(3 * CHUNK)
    for chunk in (1, 2, 0):
        blocks.stored(request, chunk * CHUNK, (chunk + 1) * CHUNK, CHUNK)
    assert [stored.start_token for stored in blocks.take().stored] == [0, CHUNK, 2 * CHUNK]


def test_what_was_not_stored_is_not_published(driver: SchedulerDriver, reader: Reader) -> None:
    store(driver, request_of(20), failed=True)
    assert driver.scheduler.take_block_changes() == BlockChanges()


def test_blocks_without_token_ids_are_not_published(driver: SchedulerDriver) -> None:
    store(driver, request_of(20, prompt_embeds=embeddings_of(20)))
    assert driver.scheduler.take_block_changes() == BlockChanges()


def test_nothing_is_published_unless_the_engine_publishes_events() -> None:
    for driver in (
        SchedulerDriver(),
        SchedulerDriver(publishes_blocks=True, groups=(CacheGroup(block_size=BLOCK, window=100),)),
    ):
        store(driver, request_of(20))
        assert driver.scheduler.take_block_changes() == BlockChanges()


def test_what_another_engine_stored_is_published_when_it_is_found(driver: SchedulerDriver, reader: Reader) -> None:
    request = request_of(30)
    look_up(driver, request, 16)
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(request.block_hashes[:4])


def test_chunk_that_a_lookup_misses_is_published_as_removed(driver: SchedulerDriver, reader: Reader) -> None:
    request = request_of(30, "first")
    store(driver, request)
    look_up(driver, request_of(30, "second"), 8)
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(request.block_hashes[:2])


def test_doubtful_miss_removes_nothing(driver: SchedulerDriver, reader: Reader) -> None:
    """A tier may be late, or the depot may not answer."""
    request = request_of(30, "first")
    store(driver, request)
    look_up(driver, request_of(30, "second"), 8, is_absent=False)
    late = request_of(30, "late")
    driver.scheduler.matched_tokens(late, 0)
    driver.scheduler.allocated(late, TABLE, 0)
    failed = request_of(30, "failed")
    driver.scheduler.matched_tokens(failed, 0)
    lookup = driver.lookup_client.answer(0)
    lookup.failed = lookup.is_absent = True
    driver.scheduler.allocated(failed, TABLE, 0)
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(request.block_hashes[:6])


@pytest.mark.parametrize("again", [False, True], ids=["stored for the first time", "stored again"])
def test_lookup_that_began_before_a_store_removes_nothing(driver: SchedulerDriver, reader: Reader, again: bool) -> None:
    early, request = request_of(30, "early"), request_of(30, "first")
    if again:
        store(driver, request_of(30, "before"))
    driver.scheduler.matched_tokens(early, 0)
    store(driver, request)
    driver.lookup_client.answer(0).is_absent = True
    driver.scheduler.allocated(early, TABLE, 0)
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set(request.block_hashes[:6])


@pytest.mark.parametrize("event", ["reset", "detached", "another attachment"])
def test_all_is_removed_when_the_engine_can_load_it_no_longer(
    driver: SchedulerDriver, reader: Reader, event: str
) -> None:
    request = request_of(30)
    store(driver, request)
    reader.read(driver.scheduler.take_block_changes())
    match event:
        case "reset":
            driver.scheduler.reset()
        case "detached":
            driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
        case _:
            driver.scheduler.reported(WorkerReport(chunk_sizes={0: 2 * CHUNK}))
    reader.read(driver.scheduler.take_block_changes())
    assert reader.blocks == set()


def test_store_that_ends_after_a_reset_is_not_published(driver: SchedulerDriver) -> None:
    request = request_of(30)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 30}).stores
    driver.scheduler.reset()
    driver.mark_done(command.transfer_id)
    assert driver.scheduler.take_block_changes() == BlockChanges()


def test_store_for_another_chunk_size_is_not_published(driver: SchedulerDriver) -> None:
    request = request_of(30)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 30}).stores
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    driver.mark_done(command.transfer_id)
    assert driver.scheduler.take_block_changes() == BlockChanges()


def test_memory_is_bounded_and_what_leaves_is_removed(monkeypatch: pytest.MonkeyPatch, reader: Reader) -> None:
    monkeypatch.setattr(published_blocks, "MAX_CHUNKS", 4)
    blocks = PublishedBlocks(BLOCK, BLOCK)
    for number in range(20):
        blocks.stored(Request(str(number), [number] * CHUNK), 0, CHUNK, CHUNK)
        reader.read(blocks.take())
        assert len(reader.blocks) <= 4 * CHUNK // BLOCK
    last = [Request(str(number), [number] * CHUNK) for number in range(16, 20)]
    assert reader.blocks == {each for request in last for each in request.block_hashes}


def test_removals_of_one_step_are_bounded(monkeypatch: pytest.MonkeyPatch, reader: Reader) -> None:
    monkeypatch.setattr(published_blocks, "MAX_REMOVED_HASHES", 4)
    blocks = PublishedBlocks(BLOCK, BLOCK)
    request = request_of(10 * CHUNK)
    blocks.stored(request, 0, 10 * CHUNK, CHUNK)
    reader.read(blocks.take())
    blocks.clear()
    blocks.stored(request, 0, CHUNK, CHUNK)  # it must not be removed later
    for _ in range(10):
        changes = blocks.take()
        assert len(changes.removed_hashes) <= 4
        reader.read(changes)
    assert reader.blocks == set(request.block_hashes[:2])


def test_blocks_larger_than_hashes_have_the_hash_of_their_end(reader: Reader) -> None:
    request = request_of(4 * CHUNK)
    assert block_hashes(request, CHUNK, 3 * CHUNK, CHUNK, BLOCK) == request.block_hashes[3:6:2]


class PublishedWalk(RuleBasedStateMachine):
    """Chunks come and go in a depot. A reader that reads all changes sees what the engine knows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = PublishedBlocks(BLOCK, BLOCK)
        self.reader = Reader()
        self.known: dict[bytes, bytes] = {}  # of a chunk's first block, by that of its last one

    prompts = st.tuples(st.integers(0, 2), st.integers(1, 4))

    def request(self, prompt: tuple[int, int]) -> Request:
        family, chunks = prompt
        return Request("request", [family] * chunks * CHUNK)

    @rule(prompt=prompts, start=st.integers(0, 3))
    def store(self, prompt: tuple[int, int], start: int) -> None:
        request = self.request(prompt)
        self.blocks.stored(request, start * CHUNK, request.num_tokens, CHUNK)
        hashes = request.block_hashes
        for chunk in range(start, prompt[1]):
            self.known[hashes[2 * chunk + 1]] = hashes[2 * chunk]

    @rule(prompt=prompts, matched=st.integers(0, 3))
    def miss(self, prompt: tuple[int, int], matched: int) -> None:
        request = self.request(prompt)
        self.blocks.absent(request, matched * CHUNK, request.num_tokens, CHUNK, self.blocks.mark)
        for chunk in range(matched, prompt[1]):
            self.known.pop(request.block_hashes[2 * chunk + 1], None)

    @rule()
    def clear(self) -> None:
        self.blocks.clear()
        self.known.clear()

    @rule()
    def read(self) -> None:
        self.reader.read(self.blocks.take())

    @invariant()
    def reader_sees_what_is_known(self) -> None:
        picture = Reader()
        picture.blocks = set(self.reader.blocks)
        stored, removed = list(self.blocks._stored), dict(self.blocks._removed)
        picture.read(BlockChanges(stored, [block[at : at + 32] for block in removed.values() for at in (0, 32)]))
        assert picture.blocks == {*self.known, *self.known.values()}


PublishedWalk.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
test_published_walk = PublishedWalk.TestCase

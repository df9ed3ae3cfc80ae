"""A tier whose store is slow, hangs, crashes or lies: what happens to loads, writes and other calls, and after it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from service.tiers.address.limits import TierLimits
from service.tiers.answer import Doubt
from service.tiers.breaker import MAX_FAILURES
from service.tiers.load import LoadEnd
from service.tiers.snapshot import TierState
from telemetry.events import IoWorkerEnded, TierStateChanged, TierWriteDropped
from tests.fakes.tiers import OWNER, TierUnderTest, expected, key_of, running_tier
from tests.fakes.waiting import eventually

KINDS = pytest.mark.parametrize("is_local", [False, True], ids=["remote", "local"])
TWO_READERS = TierLimits(read_workers=2, write_workers=1, ask_workers=1)


async def ends(test: TierUnderTest, *numbers: int) -> list[LoadEnd]:
    """Load chunks, and check that only right bytes arrive."""
    loads = [test.l1.load(number) for number in numbers]
    test.tier.load(loads)
    found = [await load.done for load in loads]
    for load, number, end in zip(loads, numbers, found, strict=True):
        assert end is not LoadEnd.ARRIVED or test.l1.loaded(load) == expected(number)
    return found


def alive(test: TierUnderTest, role: str = "") -> list[int]:
    return [pid for pid in test.folder.pids(role) if test.is_alive(pid)]


@KINDS
@pytest.mark.parametrize(
    "fault",
    ["flipped bit", "flipped bit in the record", "torn", "another key", "shorter record", "short record"],
)
async def test_wrong_bytes_are_damaged_deleted_and_written_again(tmp_path: Path, is_local: bool, fault: str) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunk = test.l1.chunk(2)
        await test.written([chunk, test.l1.chunk(4)])
        test.folder.fault(read=fault)
        may_be_of_another_secret = is_local and fault == "shorter record"
        assert await ends(test, 2) == [LoadEnd.ABSENT if may_be_of_another_secret else LoadEnd.DAMAGED]
        await eventually(lambda: test.folder.num_chunks() == 1)
        assert (await test.tier.find([key_of(2)], OWNER, 5.0)).found == [False]
        test.folder.fault()
        chunk.in_tiers = 0  # another chunk with the key, which an engine stored
        await test.written([chunk])
        assert await ends(test, 2) == [LoadEnd.ARRIVED]
        assert test.tier.snapshot().state is TierState.AVAILABLE


@KINDS
async def test_a_chunk_of_another_length_does_not_arrive(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(2)])
        load = test.l1.load(2, chunk_bytes=4_000)
        test.tier.load([load])
        assert await load.done is LoadEnd.DAMAGED


@KINDS
@pytest.mark.parametrize("fault", ["foreign part", "twice"])
async def test_answers_for_other_parts_than_asked_are_failures(tmp_path: Path, is_local: bool, fault: str) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(2), test.l1.chunk(4)])
        test.folder.fault(read=fault)
        assert LoadEnd.FAILED in await ends(test, 2, 4)
        test.folder.fault()
        assert await ends(test, 2, 4) == [LoadEnd.ARRIVED] * 2


@KINDS
async def test_a_read_that_hangs_ends_late_when_its_io_worker_is_dead(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local, limits=TWO_READERS) as test:
        await test.written([test.l1.chunk(number) for number in range(4)])
        assert await ends(test, 0) == [LoadEnd.ARRIVED]
        await eventually(lambda: test.tier.seconds_to_read(1) is not None)
        before = alive(test, "read")
        test.folder.fault(read="hangs")
        load = test.l1.load(1)
        was_alive: list[int] = []
        load.done.add_done_callback(lambda _: was_alive.extend(pid for pid in before if test.is_alive(pid)))
        test.tier.load([load])
        await eventually(lambda: test.folder.calls("read") == [1, 1])
        test.folder.fault()
        assert await ends(test, 2, 3) == [LoadEnd.ARRIVED] * 2  # by the other I/O worker, meanwhile
        assert await load.done is LoadEnd.LATE
        assert len(was_alive) == 1, "its slot is free before its I/O worker is dead"
        await eventually(lambda: len(alive(test, "read")) == 2)
        assert [(event.reason, event.verb, event.num_parts) for event in test.bus.of(IoWorkerEnded)] == [
            ("deadline", "read", 1)
        ]
        assert await ends(test, 1, 2) == [LoadEnd.ARRIVED] * 2
        assert test.tier.snapshot().num_io_workers_killed == 1


@KINDS
@pytest.mark.parametrize("fault", ["exits", "segfault", "killed", "raises", "bug"])
async def test_what_was_read_before_a_failure_counts(tmp_path: Path, is_local: bool, fault: str) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(number) for number in range(6)])
        test.folder.fault(read=fault, after_parts=3)
        assert await ends(test, *range(6)) == [LoadEnd.ARRIVED] * 3 + [LoadEnd.FAILED] * 3
        test.folder.fault()
        assert await ends(test, *range(6)) == [LoadEnd.ARRIVED] * 6
        if test.index is not None:
            assert test.index.num_pins == 0


@KINDS
@pytest.mark.parametrize("fault", ["exits", "killed", "raises", "fails", "bug"])
async def test_a_write_that_fails_leaves_the_chunk_to_be_written_later(
    tmp_path: Path, is_local: bool, fault: str
) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunks = [test.l1.chunk(number) for number in range(4)]
        test.folder.fault(write=fault, after_parts=2)
        await test.written(chunks)
        assert [bool(chunk.in_tiers) for chunk in chunks] == [True, True, False, False]
        assert test.tier.snapshot().writes == {"ok": 2, "failed": 2}
        assert (await test.tier.find([chunk.key for chunk in chunks], OWNER, 5.0)).found == [True, True, False, False]
        test.folder.fault()
        await test.written(chunks)
        assert await ends(test, *range(4)) == [LoadEnd.ARRIVED] * 4


async def test_a_question_that_hangs_costs_a_lookup_no_more_than_its_timeout(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        test.folder.fault(exists="hangs")
        answers = await asyncio.gather(*(test.tier.find([key_of(number)], OWNER, 0.02) for number in range(10)))
        assert {answer.doubt for answer in answers} == {Doubt.LATE}
        assert test.tier.snapshot().state is TierState.AVAILABLE
        await eventually(lambda: test.tier.snapshot().num_io_workers_killed == 1)
        test.folder.fault()
        answer = await test.tier.find([key_of(1)], OWNER, 20.0)
        assert answer.doubt is None


@pytest.mark.parametrize("fault", ["raises", "bug", "exits"])
async def test_a_question_that_fails_is_a_doubt(tmp_path: Path, fault: str) -> None:
    async with running_tier(tmp_path) as test:
        test.folder.fault(exists=fault)
        assert await test.tier.find([key_of(1)], OWNER, 20.0) == ([False], Doubt.FAILED)


async def test_too_few_answers_break_the_protocol(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        test.folder.fault(exists="short")
        assert await test.tier.find([key_of(1), key_of(2)], OWNER, 20.0) == ([False] * 2, Doubt.FAILED)
        await eventually(lambda: [event.reason for event in test.bus.of(IoWorkerEnded)] == ["protocol"])


@KINDS
async def test_failures_open_the_breaker_and_a_probe_closes_it(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(number) for number in range(4)])
        test.folder.fault(read="raises", exists="raises")
        for number in range(MAX_FAILURES):
            assert await ends(test, number) == [LoadEnd.FAILED]
        await eventually(lambda: test.tier.snapshot().state is TierState.FAILING)
        snapshot = test.tier.snapshot()
        assert "the server says no" in snapshot.detail
        assert snapshot.seconds_to_probe is not None and snapshot.seconds_to_probe <= 1.0
        assert await test.tier.find([key_of(1)], OWNER, 5.0) == ([False], Doubt.UNAVAILABLE)
        assert await ends(test, 1) == [LoadEnd.FAILED]
        assert test.folder.calls("read") == [1] * MAX_FAILURES
        test.tier.write([test.l1.chunk(9)])
        assert [event.reason for event in test.bus.of(TierWriteDropped)] == ["tier unavailable"]
        test.folder.fault()
        await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE)
        assert await ends(test, 1) == [LoadEnd.ARRIVED]
        assert [event.state for event in test.bus.of(TierStateChanged)] == ["available", "failing", "available"]


async def test_what_waits_ends_when_the_breaker_opens(tmp_path: Path) -> None:
    async with running_tier(tmp_path, limits=TierLimits(read_workers=2, write_workers=1, ask_workers=1)) as test:
        await test.written([test.l1.chunk(number) for number in range(3)])
        await ends(test, 0)
        await eventually(lambda: test.tier.seconds_to_read(1) is not None)
        test.folder.fault(read="hangs", open="raises")
        loads = [test.l1.load(number % 3, slot=number) for number in range(40)]
        test.tier.load(loads)
        found = [await load.done for load in loads]
        assert set(found) == {LoadEnd.LATE, LoadEnd.FAILED}
        assert test.tier.snapshot().state is TierState.FAILING
        assert test.tier.snapshot().queued_reads == 0


async def test_a_tier_that_opens_later_is_used_from_then_on(tmp_path: Path) -> None:
    async with running_tier(tmp_path, waits=False) as test:
        test.folder.fault(open="raises")
        assert test.tier.snapshot().state in (TierState.OPENING, TierState.FAILING)
        assert await test.tier.find([key_of(1)], OWNER, 5.0) == ([False], Doubt.UNAVAILABLE)
        await eventually(lambda: test.tier.snapshot().state is TierState.FAILING)
        assert test.tier.snapshot().detail == "opening: the server says no"
        test.folder.fault()
        await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE)
        await test.written([test.l1.chunk(1)])
        assert await ends(test, 1) == [LoadEnd.ARRIVED]


async def test_a_tier_that_can_not_be_opened_as_it_is_set_up_says_so(tmp_path: Path) -> None:
    (tmp_path / "fault").write_text('{"open": "unusable"}')
    async with running_tier(tmp_path, waits=False) as test:
        await eventually(lambda: test.tier.snapshot().state is TierState.UNUSABLE)
        snapshot = test.tier.snapshot()
        assert snapshot.detail == "the password is wrong"
        assert snapshot.seconds_to_probe is not None and 50 < snapshot.seconds_to_probe <= 60
        assert await test.tier.find([key_of(1)], OWNER, 5.0) == ([False], Doubt.UNAVAILABLE)


@pytest.mark.parametrize("fault", ["raises", "exits", "bug"])
async def test_a_local_tier_that_can_not_be_scanned_is_not_used(tmp_path: Path, fault: str) -> None:
    (tmp_path / "fault").write_text(f'{{"scan": "{fault}"}}')
    async with running_tier(tmp_path, is_local=True, waits=False) as test:
        await eventually(lambda: test.tier.snapshot().state is TierState.FAILING)
        test.folder.fault()
        await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE)


async def test_closing_does_not_wait_for_a_store_that_hangs(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        test.folder.fault(write="hangs", read="hangs", exists="hangs")
        chunk, load = test.l1.chunk(1), test.l1.load(2)
        test.tier.write([chunk])
        await eventually(lambda: test.folder.calls("write") == [1])
        test.tier.load([load])
        await test.tier.close()
        assert chunk.num_readers == 0
        assert load.done.done()
        assert alive(test) == []


@KINDS
async def test_io_workers_killed_at_random_cost_no_wrong_byte_and_no_slot(tmp_path: Path, is_local: bool) -> None:
    chance = random.Random(17)
    async with running_tier(tmp_path, is_local=is_local, limits=TWO_READERS) as test:
        chunks = [test.l1.chunk(number) for number in range(12)]
        for _ in range(4):
            for chunk in chunks:
                chunk.in_tiers = 0
            test.folder.fault(read="takes 0.005", write="takes 0.005")
            test.tier.write(chunks)
            loading = asyncio.ensure_future(ends(test, *range(12)))
            pids = alive(test)
            for pid in chance.sample(pids, k=min(2, len(pids))):
                await asyncio.sleep(chance.random() * 0.02)
                if test.is_alive(pid):
                    os.kill(pid, chance.choice([signal.SIGKILL, signal.SIGSEGV]))
            await loading
        test.folder.fault()
        await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE and len(alive(test)) >= 3)
        await eventually(lambda: not any(chunk.num_readers for chunk in chunks))
        for chunk in chunks:
            chunk.in_tiers = 0
        await test.written(chunks)
        assert await ends(test, *range(12)) == [LoadEnd.ARRIVED] * 12
        assert test.l1.index.num_protected == 0
        if test.index is not None:
            assert test.index.num_pins == 0

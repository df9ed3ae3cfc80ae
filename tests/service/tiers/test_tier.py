"""A tier that works: what lookups, loads and writes get from it, with real I/O workers over a store of files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.tiers.address.limits import TierLimits
from service.tiers.answer import Answer, Doubt
from service.tiers.clears import clear_note
from service.tiers.load import LoadEnd
from service.tiers.record import Owner
from service.tiers.snapshot import TierState
from telemetry.events import TierAsked, TierRead, TierStateChanged, TierWriteDropped, TierWritten
from tests.fakes.tiers import BIT, CHUNK_BYTES, OWNER, DictIndex, TierUnderTest, expected, key_of, running_tier
from tests.fakes.waiting import eventually

KINDS = pytest.mark.parametrize("is_local", [False, True], ids=["remote", "local"])


async def found(test: TierUnderTest, *numbers: int, owner: Owner = OWNER) -> list[bool]:
    answer = await test.of_depot.find([key_of(number) for number in numbers], owner, 20.0)
    assert answer.doubt is None
    return list(answer.found)


async def loaded(test: TierUnderTest, *numbers: int, owner: Owner = OWNER) -> list[LoadEnd]:
    loads = [test.l1.load(number, owner=owner) for number in numbers]
    test.of_depot.load(loads)
    ends = [await load.done for load in loads]
    for load, number, end in zip(loads, numbers, ends, strict=True):
        if end is LoadEnd.ARRIVED:
            assert test.l1.loaded(load) == expected(number)
            assert load.absent_tokens == ((3, 0) if number % 2 else ())
    return ends


@KINDS
async def test_what_is_written_is_found_and_comes_back_as_it_was(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunks = [test.l1.chunk(number) for number in range(20)]
        await test.written(chunks)
        assert [chunk.in_tiers for chunk in chunks] == [BIT] * 20
        assert await found(test, 0, 19, 20) == [True, True, False]
        assert await loaded(test, *range(20)) == [LoadEnd.ARRIVED] * 20
        snapshot = test.tier.snapshot()
        assert snapshot.state is TierState.AVAILABLE
        assert snapshot.writes == {"ok": 20} and snapshot.reads == {"arrived": 20}
        assert snapshot.read_bytes == snapshot.written_bytes == 20 * CHUNK_BYTES
        assert (snapshot.num_asked, snapshot.num_found) == (3, 2)
        assert {event.outcome for event in test.bus.of(TierRead)} == {"arrived"}
        assert len(test.bus.of(TierRead)) == len(test.bus.of(TierWritten)) == 20
        assert len(test.bus.of(TierAsked)) == (0 if is_local else 1)
        await eventually(lambda: test.tier.snapshot().read_bytes_per_second is not None)
        assert test.tier.snapshot().write_bytes_per_second


@KINDS
async def test_only_a_local_tier_that_can_be_used_is_certain_that_it_lacks_a_chunk(
    tmp_path: Path, is_local: bool
) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(0)])
        assert [test.tier.lacks(key_of(number)) for number in (0, 1)] == [False, is_local]
        assert test.tier.snapshot().num_asked == int(is_local)
    assert not test.tier.lacks(key_of(1)), "it is closed"


@KINDS
async def test_a_chunk_that_the_tier_has_is_not_written_again(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunk = test.l1.chunk(1)
        await test.written([chunk])
        await test.written([chunk, chunk])
        assert test.folder.calls("write") == [1]


async def test_a_local_tier_knows_what_it_has_though_l1_does_not(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True) as test:
        chunk = test.l1.chunk(1)
        await test.written([chunk])
        chunk.in_tiers = 0
        await test.written([chunk])
        assert test.folder.calls("write") == [1] and chunk.in_tiers == BIT


async def test_a_local_tier_finds_what_an_earlier_process_wrote(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True) as test:
        await test.written([test.l1.chunk(number) for number in range(5)])
    async with running_tier(tmp_path, is_local=True) as test:
        assert await found(test, 0, 4, 5) == [True, True, False]
        assert await loaded(test, 3) == [LoadEnd.ARRIVED]
        assert test.tier.snapshot().num_chunks == 5


async def test_an_absent_chunk_is_not_asked_for_again_until_it_is_written(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        assert await loaded(test, 1) == [LoadEnd.ABSENT]
        assert await found(test, 1) == [False]
        assert test.folder.calls("exists") == []
        await test.written([test.l1.chunk(1)])
        assert await found(test, 1) == [True]


async def test_lookups_at_the_same_time_share_one_question(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        await test.written([test.l1.chunk(2)])
        test.folder.fault(exists="takes 0.2")
        first = asyncio.ensure_future(found(test, 1))
        await eventually(lambda: test.folder.calls("exists") == [1])
        others = await asyncio.gather(found(test, 2, 3), found(test, 4), found(test, 2))
        assert list(others) == [[True, False], [False], [True]]
        assert await first == [False]
        assert test.folder.calls("exists") == [1, 4]


async def test_a_slow_store_is_asked_for_fewer_names_at_a_time(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        await test.written([test.l1.chunk(number) for number in range(40)])
        test.folder.fault(exists="takes 0.2")
        await found(test, *range(256))
        test.folder.fault()
        assert await found(test, *range(90)) == [True] * 40 + [False] * 50
        assert test.folder.calls("exists")[0] == 256
        assert max(test.folder.calls("exists")[1:]) < 90


async def test_loads_keep_their_order_and_share_the_io_workers(tmp_path: Path) -> None:
    limits = TierLimits(read_workers=2, write_workers=1, ask_workers=1)
    async with running_tier(tmp_path, limits=limits) as test:
        await test.written([test.l1.chunk(number) for number in range(8)])
        assert await loaded(test, *range(8)) == [LoadEnd.ARRIVED] * 8
        assert max(test.folder.calls("read")) == 4  # half of them


async def test_a_load_that_nobody_wants_any_more_does_not_begin(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        load = test.l1.load(1, is_wanted=lambda: False)
        before = test.l1.loaded(load)
        test.tier.load([load])
        assert await load.done is LoadEnd.UNWANTED
        assert test.folder.calls("read") == [] and test.l1.loaded(load) == before


@KINDS
async def test_a_chunk_that_left_l1_while_it_waited_is_dropped(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunk = test.l1.chunk(1)
        test.tier.write([chunk])
        test.l1.remove(chunk)
        await eventually(lambda: test.tier.snapshot().dropped == {"evicted": 1})
        assert test.folder.num_chunks() == 0


@KINDS
async def test_a_chunk_stays_as_it_is_while_it_is_written_though_it_leaves_l1(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunk = test.l1.chunk(1)
        test.folder.fault(write="takes 0.2")
        test.tier.write([chunk])
        await eventually(lambda: test.folder.calls("write") == [1])
        assert chunk.num_readers == 1
        test.l1.remove(chunk)
        assert test.l1.index.pool.num_used_slots == 1
        await eventually(lambda: test.l1.index.pool.num_used_slots == 0)
        assert await loaded(test, 1) == [LoadEnd.ARRIVED]


async def test_the_writes_of_all_workers_leave_most_of_l1_to_engines(tmp_path: Path) -> None:
    limits = TierLimits(read_workers=1, write_workers=2, ask_workers=1)
    async with running_tier(tmp_path, limits=limits) as test:
        test.folder.fault(write="takes 0.2")
        chunks = [test.l1.chunk(number, chunk_bytes=256 << 10) for number in range(12)]  # of 4 MiB
        test.tier.write(chunks)
        await eventually(lambda: test.folder.calls("write") == [2, 2])
        assert sum(chunk.num_readers for chunk in chunks) == 4
        await eventually(lambda: test.tier.snapshot().writes == {"ok": 12})


async def test_a_full_queue_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    limits = TierLimits(read_workers=1, write_workers=1, ask_workers=1, queue_bytes=3 * CHUNK_BYTES)
    async with running_tier(tmp_path, limits=limits) as test:
        test.folder.fault(write="takes 0.2")
        test.tier.write([test.l1.chunk(0)])
        await eventually(lambda: test.folder.calls("write") == [1])
        test.tier.write([test.l1.chunk(number) for number in range(1, 6)])
        assert test.tier.snapshot().queued_write_bytes == 3 * CHUNK_BYTES
        (dropped,) = test.bus.of(TierWriteDropped)
        assert (dropped.reason, dropped.num_chunks, dropped.num_bytes) == (
            "queue full",
            2,
            2 * CHUNK_BYTES,
        )
        await eventually(lambda: test.folder.num_chunks() == 4)
        assert await found(test, *range(6)) == [True, False, False, True, True, True]


async def test_a_spent_budget_drops_chunks(tmp_path: Path) -> None:
    limits = TierLimits(read_workers=1, write_workers=1, ask_workers=1, write_bytes_per_day=24 * 2 * CHUNK_BYTES)
    async with running_tier(tmp_path, limits=limits) as test:
        await test.written([test.l1.chunk(number) for number in range(3)])
        assert test.tier.snapshot().writes == {"ok": 2}
        assert test.tier.snapshot().dropped == {"budget": 1}


@KINDS
async def test_a_full_store_is_no_failure(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        test.folder.fault(write="full")
        chunks = [test.l1.chunk(number) for number in range(10)]
        for chunk in chunks:
            await test.written([chunk])
        assert test.tier.snapshot().writes == {"full": 10}
        assert test.tier.snapshot().state is TierState.AVAILABLE
        assert {chunk.in_tiers for chunk in chunks} == {0}


async def test_a_local_tier_without_a_free_place_writes_nothing(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True, index=DictIndex(num_places=2)) as test:
        await test.written([test.l1.chunk(number) for number in range(3)])
        assert test.tier.snapshot().writes == {"full": 1, "ok": 2}


@KINDS
async def test_wrong_bytes_in_l1_are_not_written_and_are_reported(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunk, other = test.l1.chunk(1), test.l1.chunk(2)
        test.l1.bytes_of(chunk)[4_321] ^= 1
        await test.written([chunk, other])
        assert test.corrupt == [chunk]
        assert test.tier.snapshot().writes == {"corrupt": 1, "ok": 1}
        assert await found(test, 1, 2) == [False, True]


async def test_a_chunk_without_a_checksum_gets_one(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        chunk = test.l1.chunk(1)
        checksum, chunk.checksum = chunk.checksum, None
        await test.written([chunk])
        load = test.l1.load(1)
        test.tier.load([load])
        assert await load.done is LoadEnd.ARRIVED and load.checksum == checksum


@KINDS
async def test_closing_writes_what_waits(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        test.tier.write([test.l1.chunk(number) for number in range(20)])
    assert test.folder.num_chunks() == 20
    assert await test.tier.find([key_of(1)], OWNER, 1.0) == Answer([False], Doubt.UNAVAILABLE)


async def test_a_closed_tier_takes_no_loads_and_no_chunks(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        chunk, load = test.l1.chunk(1), test.l1.load(1)
        await test.tier.close()
        test.tier.write([chunk])
        test.tier.load([load])
        assert await load.done is LoadEnd.FAILED
        assert test.tier.snapshot().dropped == {"shutdown": 1}
        await test.tier.close()


async def test_cancelling_ends_everything_at_once(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        await test.written([test.l1.chunk(1)])
        test.folder.fault(read="hangs")
        running, waiting = test.l1.load(1), test.l1.load(2)
        test.tier.load([running])
        await eventually(lambda: test.folder.calls("read") == [1])
        test.tier.load([waiting])
        await test.tier.close()
        assert [await running.done, await waiting.done] == [LoadEnd.FAILED] * 2


CLEARS = pytest.mark.parametrize(
    ("tenant", "model_name", "cache_salt"), [("a", "m", "s"), ("a", "", None), (None, "", None)]
)


@KINDS
@CLEARS
async def test_cleared_chunks_are_never_found_again(
    tmp_path: Path, is_local: bool, tenant: str | None, model_name: str, cache_salt: str | None
) -> None:
    mine, other = Owner("a", "m", "s"), Owner("b", "m2", "t")
    async with running_tier(tmp_path, is_local=is_local) as test:
        chunks = [test.l1.chunk(1, owner=mine), test.l1.chunk(2, owner=other)]
        await test.written(chunks)
        num_cleared = await test.tier.clear(tenant, model_name, cache_salt)
        assert num_cleared == (0 if not is_local else 2 if tenant is None else 1)
        assert await found(test, 1, owner=mine) == [False]
        assert await loaded(test, 1, owner=mine) == [LoadEnd.ABSENT]
        assert await found(test, 2, owner=other) == [tenant is not None]
        chunks[0].in_tiers = 0
        await test.written(chunks[:1])
        assert await loaded(test, 1, owner=mine) == [LoadEnd.ARRIVED]


async def test_a_cleared_local_tier_stays_cleared_after_a_restart(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True) as test:
        await test.written([test.l1.chunk(1), test.l1.chunk(2, owner=Owner("b", "m", ""))])
        assert await test.tier.clear("b", "", None) == 1
        assert test.folder.num_chunks() == 1
    async with running_tier(tmp_path, is_local=True) as test:
        assert await found(test, 1, 2) == [True, False]


async def test_a_clear_is_known_to_later_processes_and_to_other_depots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clear_note, "INTERVAL_SECONDS", 0.05)
    async with running_tier(tmp_path, is_shared=True) as other, running_tier(tmp_path, is_shared=True) as test:
        await test.written([test.l1.chunk(1), test.l1.chunk(2, owner=Owner("b", "m", ""))])
        assert await found(other, 1) == [True]
        await test.tier.clear("", "", None)
        await eventually(lambda: found_nothing(other, 1))
        assert await found(other, 2, owner=Owner("b", "m", "")) == [True]
    async with running_tier(tmp_path) as test:
        assert await found(test, 1) == [False]
        assert await found(test, 2, owner=Owner("b", "m", "")) == [True]


async def found_nothing(test: TierUnderTest, number: int) -> bool:
    return await found(test, number) == [False]


async def test_a_damaged_note_of_what_was_cleared_leaves_nothing_to_be_found(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        await test.written([test.l1.chunk(1)])
        await test.tier.clear("b", "", None)
    note = tmp_path / "note"
    note.write_bytes(note.read_bytes()[:-1] + b"!")
    async with running_tier(tmp_path) as test:
        assert await found(test, 1) == [False]
        chunk = test.l1.chunk(1)
        await test.written([chunk])
        assert await found(test, 1) == [True]


async def test_a_clear_of_a_local_tier_that_is_not_open_yet_counts(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True) as test:
        await test.written([test.l1.chunk(1), test.l1.chunk(2, owner=Owner("b", "m", ""))])
    test.folder.fault(scan="takes 0.2")
    async with running_tier(tmp_path, is_local=True, waits=False) as test:
        await test.tier.clear("b", "", None)
        await eventually(lambda: test.tier.snapshot().state is TierState.AVAILABLE)
        assert await found(test, 1, 2) == [True, False]
        await eventually(lambda: test.folder.num_chunks() == 1)


async def test_a_load_may_end_after_its_chunk_was_cleared_and_erased(tmp_path: Path) -> None:
    async with running_tier(tmp_path, is_local=True) as test:
        await test.written([test.l1.chunk(1)])
        test.folder.fault(read="takes 0.3")
        load = test.l1.load(1)
        test.tier.load([load])
        await eventually(lambda: test.folder.calls("read") == [1])
        assert await test.tier.clear(None, "", None) == 1
        assert await load.done is LoadEnd.ABSENT
        await eventually(lambda: test.tier.snapshot().used_bytes == 0)


@KINDS
async def test_chunks_on_their_way_are_cleared_too(tmp_path: Path, is_local: bool) -> None:
    async with running_tier(tmp_path, is_local=is_local) as test:
        await test.written([test.l1.chunk(1)])
        test.folder.fault(read="takes 0.3", write="takes 0.3")
        running, waiting = test.l1.load(1), test.l1.load(2)
        test.tier.load([running])
        await eventually(lambda: test.folder.calls("read") == [1])
        test.tier.load([waiting])
        chunk, queued = test.l1.chunk(3), test.l1.chunk(4)
        test.tier.write([chunk])
        await eventually(lambda: len(test.folder.calls("write")) == 2)
        test.tier.write([queued])
        await test.tier.clear(None, "", None)
        assert [await running.done, await waiting.done] == [LoadEnd.ABSENT] * 2
        await eventually(lambda: chunk.num_readers == 0)
        test.folder.fault()
        assert await found(test, 1, 3, 4) == [False] * 3
        if is_local:
            await eventually(lambda: test.folder.num_chunks() == 0)
        assert chunk.in_tiers == 0


async def test_its_states_are_events(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        pass
    assert [event.state for event in test.bus.of(TierStateChanged)] == ["available"]


async def test_the_time_of_a_read_counts_what_waits(tmp_path: Path) -> None:
    async with running_tier(tmp_path) as test:
        assert test.tier.seconds_to_read(1) is None
        await test.written([test.l1.chunk(1)])
        assert await loaded(test, 1) == [LoadEnd.ARRIVED]
        await eventually(lambda: test.tier.seconds_to_read(1) is not None)
        alone = test.tier.seconds_to_read(CHUNK_BYTES)
        assert alone is not None
        test.folder.fault(read="takes 0.1")
        loads = [test.l1.load(1, slot=slot) for slot in range(3)]
        test.tier.load(loads)
        assert test.tier.seconds_to_read(CHUNK_BYTES) == pytest.approx(4 * alone)
        for load in loads:
            await load.done

"""A depot that is killed or stopped at any moment: the next one finds what was stored, and never a wrong byte."""

from __future__ import annotations

import asyncio
import itertools
import signal
from pathlib import Path

import numpy as np
import pytest

from kvdepot import token_prefix
from service.l1.format import Layout
from tests.e2e.access.calling import write_tenants
from tests.e2e.engines import prompt
from tests.e2e.restarts import (
    DepotProcess,
    depot_process,
    engines,
    found_tokens,
    length_of,
    share_found,
    store,
    store_until_dead,
)
from tests.fakes.waiting import eventually

SEEDS = range(1, 41)


async def kill_under_load(
    depot: DepotProcess, seconds: float, seeds: itertools.count[int]
) -> tuple[list[int], list[int]]:
    """Store from four engines, kill the depot after some seconds. Return acknowledged and unacknowledged seeds."""
    async with engines(depot.address, 4) as attached:
        storing = [asyncio.create_task(store_until_dead(engine, seeds)) for engine in attached]
        await asyncio.sleep(seconds)
        await depot.end()
        ended = await asyncio.gather(*storing)
    acknowledged = [seed for ok, _ in ended for seed in ok]
    return acknowledged, [seed for _, lost in ended for seed in lost]


async def kill_again_and_again(depot: DepotProcess, num_kills: int, seed: int) -> float:
    """Kill a depot under load so many times. Return the smallest share of acknowledged tokens that was found."""
    rng = np.random.default_rng(seed)
    seeds = itertools.count(1000)
    shares = []
    stored: list[int] = []
    for _ in range(num_kills):
        acknowledged, lost = await kill_under_load(depot, float(rng.uniform(0.05, 0.3)), seeds)
        await depot.start()
        async with engines(depot.address) as [engine]:
            if acknowledged:
                shares.append(await share_found(engine, acknowledged))
            for each in (*lost, *rng.choice(stored, min(20, len(stored)), replace=False).tolist()):
                await found_tokens(engine, each)
        stored += acknowledged
    assert len(stored) > 20 * num_kills, "there was hardly any load"
    return min(shares)


async def test_a_killed_depot_has_what_was_acknowledged() -> None:
    async with depot_process("--l1-size", "64MiB") as depot:
        assert await kill_again_and_again(depot, 3, seed=1) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_fifty_kills_lose_nothing_that_was_acknowledged() -> None:
    async with depot_process("--l1-size", "2GiB") as depot:  # has 32,768 records, more than 50 rounds store chunks
        assert await kill_again_and_again(depot, 50, seed=2) == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_fifty_kills_of_a_depot_that_evicts_find_no_wrong_byte() -> None:
    async with depot_process("--l1-size", "1MiB") as depot:
        await kill_again_and_again(depot, 50, seed=3)


async def test_a_stopped_depot_keeps_its_chunks_and_their_order() -> None:
    async with depot_process("--l1-size", "160KiB") as depot:  # 40 slots
        async with engines(depot.address) as [engine]:
            kept = [seed for seed in SEEDS if length_of(seed) <= 32][:4]
            for seed in kept:
                await store(engine, seed)
            assert await found_tokens(engine, kept[0]) == length_of(kept[0])  # the most recent one now
        await depot.end(signal.SIGTERM)
        await depot.start()
        async with engines(depot.address) as [engine]:
            used = sum(map(length_of, kept)) // 16
            filler = (seed for seed in range(500, 5000) if length_of(seed) == 16)
            for _ in range(40 - used + 1):
                await store(engine, next(filler))
            assert await found_tokens(engine, kept[1]) < length_of(kept[1])
            assert await found_tokens(engine, kept[0]) == length_of(kept[0])


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--cache-epoch", "1"], "its cache_epoch is 0, this depot's is 1"),
        (["--l1-size", "2MiB"], "its l1_size is 1048576, this depot's is 2097152"),
    ],
)
async def test_a_depot_with_other_settings_starts_empty_and_says_so(flags: list[str], reason: str) -> None:
    async with depot_process("--l1-size", "1MiB") as depot:
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
        await depot.end(signal.SIGTERM)
        await depot.start(*flags)
        async with engines(depot.address) as [engine]:
            found = await engine.lookup("s", token_prefix(prompt(length_of(1), 1)))
            assert found.matched_tokens == 0
        assert f"L1 starts empty, the chunks in {depot.file} can't be used: {reason}" in depot.log()


async def test_a_second_depot_on_the_same_file_does_not_start() -> None:
    async with depot_process("--l1-size", "1MiB") as depot:
        other = DepotProcess(depot.file.parent, "--l1-size", "1MiB")
        other.address = f"{depot.address}2"
        with pytest.raises(AssertionError, match="another process uses it, the one of id"):
            await other.start()
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
            assert await found_tokens(engine, 1) == length_of(1)


async def test_leases_and_sessions_end_with_the_depot() -> None:
    async with depot_process("--l1-size", "160KiB") as depot:
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
            found = await engine.lookup("s", token_prefix(prompt(length_of(1), 1)))
            assert found.HasField("lease")
            await depot.end()
        await depot.start()
        async with engines(depot.address) as [engine]:
            for seed in range(500, 520):  # more than L1 has: nothing is protected by the old lease
                await store(engine, seed)
            assert await found_tokens(engine, 1) == 0


async def test_chunks_of_tenants_that_are_no_more_are_zeroed_at_the_start(tmp_path: Path) -> None:
    tenants = write_tenants(tmp_path / "tenants.yaml", {"name": "red", "token": "red-token"})
    slots_offset = Layout(1 << 20).slots_offset
    async with depot_process("--l1-size", "1MiB") as depot:
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
        await depot.end()
        assert any(depot.file.read_bytes()[slots_offset:])
        await depot.start("--tenants", tenants)

        def is_zeroed() -> bool:
            return not any(depot.file.read_bytes()[slots_offset:])

        await eventually(is_zeroed)
        assert "chunks of callers without a tenant leave L1" in depot.log()
        await depot.end()
        await depot.start()
        async with engines(depot.address) as [engine]:
            assert await found_tokens(engine, 1) == 0
            await store(engine, 1)
            assert await found_tokens(engine, 1) == length_of(1)

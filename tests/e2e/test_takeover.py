"""A depot that takes over from a running one: no chunk is lost, no byte is wrong, no call hangs."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from kvdepot import AsyncDepotClient, DepotError
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from tests.e2e.engines import SMALL, InlineStore, attach, prompt
from tests.e2e.restarts import DepotProcess, depot_folder, depot_process, engines, found_tokens, length_of, store
from tests.fakes.service_manager import FakeServiceManager

SEEDS = range(1, 21)
CALL_SECONDS = 20.0


async def successor_of(depot: DepotProcess, *flags: str, in_file: bool = False) -> DepotProcess:
    """Start a depot that takes over from another one."""
    successor = DepotProcess(depot.file.parent, *depot.flags, in_file=in_file)
    await successor.start("--takeover", *flags)
    return successor


@pytest.mark.parametrize("in_file", [False, True])
async def test_a_successor_has_every_chunk_and_the_predecessor_ends(in_file: bool) -> None:
    async with depot_process("--l1-size", "8MiB", in_file=in_file) as depot:
        async with engines(depot.address) as [engine]:
            for seed in SEEDS:
                await store(engine, seed)
        successor = await successor_of(depot, in_file=in_file)
        try:
            assert await depot.ended() == 0
            async with engines(depot.address) as [engine]:
                for seed in SEEDS:
                    assert await found_tokens(engine, seed) == length_of(seed)
                await store(engine, 99)
                assert await found_tokens(engine, 99) == length_of(99)
            third = await successor_of(successor, in_file=in_file)
            try:
                assert await successor.ended() == 0
                async with engines(depot.address) as [engine]:
                    for seed in (*SEEDS, 99):
                        assert await found_tokens(engine, seed) == length_of(seed)
            finally:
                await third.end()
        finally:
            await successor.end()


async def test_a_successor_with_other_settings_starts_empty_and_says_so() -> None:
    async with depot_process("--l1-size", "8MiB", in_file=False) as depot:
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
        successor = await successor_of(depot, "--l1-size", "4MiB")
        try:
            async with engines(depot.address) as [engine]:
                assert await found_tokens(engine, 1) == 0
            assert "L1 starts empty, the chunks in the depot before this one can't be used" in successor.log()
        finally:
            await successor.end()


async def test_without_a_running_depot_a_takeover_is_an_ordinary_start() -> None:
    async with depot_process("--l1-size", "8MiB", "--takeover", in_file=False) as depot:
        async with engines(depot.address) as [engine]:
            await store(engine, 1)
            assert await found_tokens(engine, 1) == length_of(1)
        assert "nothing is taken over" in depot.log()


async def test_an_engine_attaches_to_the_successor_within_seconds() -> None:
    async with depot_process("--l1-size", "8MiB", in_file=False) as depot, AsyncDepotClient(depot.address) as client:
        engine = await attach(client, SMALL, instance_id="engine")
        await store(engine, 1)
        successor = await successor_of(depot)
        try:
            assert await engine.attachment.wait_lost(CALL_SECONDS) is not None
            again = await attach(client, SMALL, instance_id="engine")
            assert await found_tokens(again, 1) == length_of(1)
            await again.close()
        finally:
            engine.buffer.close()
            await successor.end()


class Load:
    """A client that stores and finds prompts through the takeover. `gap_seconds` is between two successful calls."""

    def __init__(self, address: str, number: int, seeds: Iterator[int]) -> None:
        self._address = address
        self._number = number
        self._seeds = seeds
        self.stored: list[int] = []
        self.num_failed = 0
        self.gap_seconds = 0.0
        self.num_incarnations = 0

    async def run(self, stop: asyncio.Event) -> None:
        last = time.monotonic()
        while not stop.is_set():
            with suppress(DepotError):
                async with engines(self._address) as [engine]:
                    self.num_incarnations += 1
                    while not stop.is_set():
                        seed = next(self._seeds)
                        try:
                            async with asyncio.timeout(CALL_SECONDS):
                                await store(engine, seed)
                                self.stored.append(seed)
                                assert await found_tokens(engine, seed) == length_of(seed)
                        except DepotError:
                            self.num_failed += 1
                            break
                        self.gap_seconds = max(self.gap_seconds, time.monotonic() - last)
                        last = time.monotonic()
            await asyncio.sleep(0.02)


async def test_a_takeover_under_load_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async with depot_process("--l1-size", "128MiB", in_file=False) as depot:
        seeds = itertools.count(1)
        loads = [Load(depot.address, number, seeds) for number in range(16)]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(load.run(stop))
            await asyncio.sleep(0.5)
            successor = await successor_of(depot)
            await asyncio.sleep(1.0)
            stop.set()
        try:
            assert all(load.num_incarnations >= 2 for load in loads), "a client never reached the successor"
            stored = [seed for load in loads for seed in load.stored]
            async with engines(depot.address) as [engine]:
                for seed in stored:
                    assert await found_tokens(engine, seed) == length_of(seed), seed
            gap = max(load.gap_seconds for load in loads)
            with capsys.disabled():
                print(f"\n{len(stored)} prompts; at most {gap:.2f} s between two answers")  # noqa: T201 - a figure to see
        finally:
            await successor.end()
            await depot.end()


async def test_a_depot_whose_calls_do_not_end_refuses_and_serves_on() -> None:
    async with (
        depot_process("--l1-size", "8MiB", in_file=False) as depot,
        AsyncDepotClient(depot.address) as client,
        grpc.aio.insecure_channel(depot.address) as channel,
    ):
        engine = await attach(client, SMALL, instance_id="engine")
        await store(engine, 1)
        call = InlineStore(CacheServiceStub(channel))
        await call.header(engine, "s", prompt(16, 7))
        await call.data(b"x")
        successor = DepotProcess(depot.file.parent, *depot.flags, "--drain-timeout", "0s", in_file=False)
        with pytest.raises(AssertionError, match=r"has not handed over in time|takes more than"):
            await successor.start("--takeover")
        assert await found_tokens(engine, 1) == length_of(1)
        call.cancel()
        await engine.close()


async def test_a_successor_that_names_another_file_says_that_it_does_not_use_it() -> None:
    async with depot_process("--l1-size", "8MiB", in_file=False) as depot:
        successor = await successor_of(depot, in_file=True)
        try:
            assert f"{depot.file} is not used" in successor.log()
            assert not depot.file.exists()
        finally:
            await successor.end()


async def test_systemd_keeps_the_memory_of_a_depot_that_is_killed() -> None:
    with depot_folder() as folder:
        manager = FakeServiceManager(f"{folder}/notify")
        depot = DepotProcess(folder, "--l1-size", "8MiB", in_file=False)
        try:
            await depot.start(NOTIFY_SOCKET=f"{folder}/notify")
            assert manager.receive()["FDSTOREREMOVE"] == "1"
            assert manager.receive()["FDSTORE"] == "1"
            assert manager.receive()["READY"] == "1"
            async with engines(depot.address) as [engine]:
                await store(engine, 1)
            await depot.end()
            [(name, fd)] = manager.stored
            await depot.start_with(fd, LISTEN_FDNAMES=name, NOTIFY_SOCKET=f"{folder}/notify")
            async with engines(depot.address) as [engine]:
                assert await found_tokens(engine, 1) == length_of(1)
        finally:
            await depot.end()
            manager.close()

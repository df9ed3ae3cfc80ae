"""However an engine ends, the depot unmaps its memory and ends its leases, and the next engine can attach."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvdepot import AsyncDepotClient
from kvdepot.v1.cache_pb2 import MISS_REASON_RANK_MISSING, OPERATION_KIND_STORE, OUTCOME_OK
from tests.e2e.conftest import Open
from tests.e2e.engines import FAST, SLOW, SLOW_TOKENS, Site, attach, listening_pid, prompt, refused
from tests.fakes.waiting import eventually

REPOSITORY = Path(__file__).parents[2]

LIMIT_SECONDS = 1.0


@asynccontextmanager
async def engine_process(address: str, by: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the engine of engine_process.py; remove what it leaves in /dev/shm."""
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    arguments = ("-m", "tests.e2e.engine_process", address, by)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        remove_shared_memory(process.pid)


def remove_shared_memory(pid: int) -> None:
    for left in Path("/dev/shm").glob(f"kvdepot-{pid}-*"):
        left.unlink()


def num_mappings(pid: int, name: str) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count(name)


@pytest.mark.parametrize("by, mapping", [("name", "/dev/shm/kvdepot-{pid}-"), ("fd", "/memfd:kvdepot (")])
async def test_an_engine_that_is_killed_while_it_stores_leaves_nothing_behind(
    start_server_process: Callable[..., str], by: str, mapping: str
) -> None:
    address = start_server_process("--chunk-size", "16", "--l1-size", "64MiB", "--transfer-threads", "1")
    depot_pid = listening_pid(address)
    async with AsyncDepotClient(address) as client, engine_process(address, by) as process:
        mapping = mapping.format(pid=process.pid)

        async def stores_a_long_prompt() -> bool:
            instances = (await client.list_instances()).instances
            return bool(instances and instances[0].num_leases and instances[0].ranks[0].num_transfers)

        await eventually(stores_a_long_prompt)
        assert num_mappings(depot_pid, mapping) > 0

        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()

        async def all_is_given_back() -> bool:
            status = await client.get_status()
            num_protected = status.tiers[0].num_protected_chunks
            in_use = (status.num_instances, status.num_sessions, status.num_leases, num_protected)
            return in_use == (0, 0, 0, 0) and num_mappings(depot_pid, mapping) == 0

        await eventually(all_is_given_back, within_seconds=LIMIT_SECONDS)
        engine = await attach(client, *FAST, instance_id="victim")
        assert time.monotonic() - killed < 2 * LIMIT_SECONDS
        timeline = (await client.get_session("victim", "session")).session.operations
        assert timeline[-1].kind == OPERATION_KIND_STORE

        assert await engine.holds("s", prompt(1024, seed=0), engine.kv(1024, seed=0)) == 1024
        num_stored = sum(each.outcome == OUTCOME_OK for each in timeline[2:])
        found = [
            await engine.holds("s", prompt(SLOW_TOKENS, seed), engine.kv(SLOW_TOKENS, seed))
            for seed in range(1, num_stored + 2)
        ]
        assert found == [SLOW_TOKENS] * num_stored + [0]
        answer = await engine.store("s", prompt(64, seed=99), engine.kv(64, seed=99))
        assert answer.stored_tokens == 64
        await engine.close()


async def test_a_store_whose_attachment_is_closed_ends_with_detached_and_stores_nothing(open_site: Open) -> None:
    depot = await open_site(transfer_threads=1)
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    name = engine.buffer.buffers[0].region.posix_shm.name
    await engine.store("leases", prompt(64), engine.kv(64, seed=1))
    assert (await engine.lookup("leases", prompt(64))).HasField("lease")

    kv = engine.kv(SLOW_TOKENS, seed=2)
    storing = await depot.begun(engine, engine.store("s", prompt(SLOW_TOKENS, seed=2), kv))
    assert num_mappings(os.getpid(), name) == 2  # its own, and the depot's
    await engine.attachment.close()
    with refused("FAILED_PRECONDITION", "DETACHED"):
        await storing
    await eventually(lambda: num_mappings(os.getpid(), name) == 1, within_seconds=LIMIT_SECONDS)
    await depot.assert_comes_to_rest()
    assert len(depot.depot.sessions) == 0
    depot.throttle.release()
    assert await other.holds("s", prompt(SLOW_TOKENS, seed=2), kv) == 0
    assert await other.holds("s", prompt(64), engine.kv(64, seed=1)) == 64


async def test_a_retrieve_whose_attachment_is_closed_writes_no_more(open_site: Open) -> None:
    depot = await open_site(transfer_threads=1)
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    await other.store("s", prompt(SLOW_TOKENS), other.kv(SLOW_TOKENS, seed=1))
    found = await engine.lookup("s", prompt(SLOW_TOKENS))
    retrieving = await depot.begun(engine, engine.retrieve("s", found.lease, SLOW_TOKENS))
    await engine.attachment.close()
    with refused("FAILED_PRECONDITION", "DETACHED"):
        await retrieving
    engine.buffer.fill(seed=5)
    expected = engine.buffer.twin()
    await asyncio.sleep(0.1)
    assert not engine.buffer.differences(expected)


async def test_the_end_of_one_engine_does_not_disturb_another(open_site: Open) -> None:
    depot = await open_site(transfer_threads=1)
    engine, other = await depot.attach(*SLOW), await depot.attach(*FAST)
    kv = engine.kv(SLOW_TOKENS, seed=1)
    storing = await depot.begun(engine, engine.store("s", prompt(SLOW_TOKENS), kv))
    await other.attachment.close()
    depot.throttle.release()
    await storing
    assert await engine.holds("s", prompt(SLOW_TOKENS), kv) == SLOW_TOKENS


async def test_an_instance_loses_its_leases_with_one_rank_and_its_sessions_with_the_last(depot: Site) -> None:
    ranks = [await depot.attach(instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    for rank in ranks:
        await rank.store("s", prompt(64), rank.kv(64, seed=1))
    found = await ranks[0].lookup("s", prompt(64))
    await ranks[1].attachment.close()
    await eventually(lambda: len(depot.depot.leases) == 0)
    with refused("NOT_FOUND", "LEASE_REVOKED"):
        await ranks[0].retrieve("s", found.lease, 64)
    assert (await ranks[0].lookup("s", prompt(64))).miss.reason == MISS_REASON_RANK_MISSING
    assert len(depot.depot.sessions) == 1
    await ranks[0].attachment.close()
    await eventually(lambda: len(depot.depot.sessions) == 0)
    with refused("NOT_FOUND", "SESSION_NOT_FOUND"):
        await depot.client.end_session("tp", "s")


async def test_a_rank_that_is_attached_keeps_its_place(depot: Site) -> None:
    engine = await depot.attach(instance_id="a")
    kv = engine.kv(64, seed=1)
    await engine.store("s", prompt(64), kv)
    asked = time.monotonic()
    with refused("FAILED_PRECONDITION", "RANK_ATTACHED"):
        await depot.attach(instance_id="a")
    assert 0.9 < time.monotonic() - asked < 5
    assert not engine.attachment.lost
    assert await engine.holds("s", prompt(64), kv) == 64


async def test_an_engine_that_was_restarted_waits_for_the_old_stream_to_end(depot: Site) -> None:
    engine = await depot.attach(instance_id="a")
    attaching = asyncio.create_task(depot.attach(instance_id="a"))
    await asyncio.sleep(0.2)
    assert not attaching.done()
    await engine.attachment.close()
    restarted = await attaching
    assert (await restarted.store("s", prompt(64), restarted.kv(64, seed=1))).stored_tokens == 64


@pytest.mark.parametrize("contradiction", [{"model_name": "another"}, {"world_size": 3}])
async def test_ranks_that_contradict_each_other_are_refused(depot: Site, contradiction: dict[str, Any]) -> None:
    await depot.attach(instance_id="tp", world_size=2)
    with refused("FAILED_PRECONDITION", "INSTANCE_MISMATCH"):
        await depot.attach(**{"instance_id": "tp", "world_size": 2, "rank": 1, **contradiction})
    await depot.attach(instance_id="tp", world_size=2, rank=1)


@pytest.mark.parametrize("rpc", ["Store", "Retrieve"])
async def test_an_engine_that_shrinks_its_memory_ends_its_attachment_and_others_are_served(
    depot: Site, rpc: str
) -> None:
    engine, other = await depot.attach(), await depot.attach()
    kv = other.kv(64, seed=1)
    await other.store("s", prompt(64), kv)
    found = await engine.lookup("s", prompt(64))
    os.truncate(f"/dev/shm/{engine.buffer.buffers[0].region.posix_shm.name}", 4096)
    with refused("FAILED_PRECONDITION", "REGION_UNAVAILABLE"):
        if rpc == "Store":
            await engine.attachment.store("s", prompt(64, seed=2), engine.tables(64))
        else:
            await engine.attachment.retrieve("s", found.lease, engine.tables(64))
    reason = await engine.attachment.wait_lost(10)
    assert reason is not None
    assert reason.reason == "REGION_UNAVAILABLE"
    assert await other.holds("s", prompt(64, seed=2), kv) == 0
    assert await other.holds("s", prompt(64), kv) == 64


async def test_memory_of_another_size_than_announced_is_refused(depot: Site) -> None:
    engine = await depot.attach()
    region = engine.buffer.buffers[0].region
    described = engine.buffer.described()
    for size_bytes in (region.size_bytes + 1, region.size_bytes + 4096):
        region.size_bytes = size_bytes
        with refused("FAILED_PRECONDITION", "REGION_UNAVAILABLE"):
            await depot.client.attach(instance_id="b", model_name="model", groups=described, regions=[region])
    region.posix_shm.name += "-not-there"
    with refused("FAILED_PRECONDITION", "REGION_UNAVAILABLE"):
        await depot.client.attach(instance_id="b", model_name="model", groups=described, regions=[region])

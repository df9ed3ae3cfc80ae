"""`status` and `top` show the tiers behind L1: a line for each, and why one is not used."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kvdepot import AsyncDepotClient
from kvdepot.cli.app import app
from kvdepot.cli.processes import child
from kvdepot.v1 import admin_pb2, cache_pb2
from service.server import Server
from telemetry.events import TierRead
from tests.e2e.servers import StartServer
from tests.fakes.shown_tier import VALKEY, disk_and_valkey
from tests.fakes.waiting import eventually


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    """A server with a disk that works and a Valkey that does not."""
    started: Server = await start_server(chunk_size=16, open_tiers=disk_and_valkey)
    return started


async def run(*arguments: str, columns: int = 200) -> Result:
    """Run a command in a thread, while this thread's loop has the server."""
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, env={"COLUMNS": str(columns), "TERM": "dumb"})


async def test_status_has_a_line_for_each_tier_and_says_what_is_wrong(server: Server) -> None:
    shown = await run("status", "--address", server.addresses[0])
    assert shown.exit_code == 0, shown.output
    lines = [" ".join(line.split()) for line in shown.output.splitlines()]
    assert "l1 memory available 0 B 16 MiB 0 – – – – –" in lines
    assert "disk disk available 91 GiB 200 GiB 45.7 k 45.3 % 2.31 GB/s 0.89 GB/s 12 MiB 4" in lines
    assert "shared valkey failing – – – 0.0 % – – 0 B 3" in lines
    assert "shared is failing, and is tried again in 8 s: 10.0.0.7:6379: connection refused" in lines
    [disk] = [line for line in lines if line.startswith("disk since the start: ")]
    for part in ("3 chunks damaged", "1 read late", "4 writes did not arrive (full 4)", "2 I/O workers killed"):
        assert part in disk
    assert "120 writes dropped (queue full 100, budget 20)" in disk


async def test_get_status_has_what_each_tier_knows(server: Server, client: AsyncDepotClient) -> None:
    l1, disk, valkey = (await client.get_status()).tiers
    assert (l1.tier, l1.name, l1.kind, l1.is_local) == (cache_pb2.TIER_L1, "l1", "memory", True)
    assert not l1.HasField("traffic")
    assert (disk.tier, disk.name, disk.is_local) == (cache_pb2.TIER_L2, "disk", True)
    assert (disk.used_bytes, disk.capacity_bytes, disk.num_chunks) == (91 << 30, 200 << 30, 45_678)
    assert (disk.num_verified_chunks, disk.num_corrupt_chunks, disk.num_evicted_chunks) == (900, 3, 17)
    assert not disk.HasField("time_to_probe")
    assert dict(disk.traffic.num_dropped_writes_by_reason) == {"queue full": 100, "budget": 20}
    assert (disk.traffic.read_bytes, disk.traffic.written_bytes) == (900 << 21, 46_000 << 21)
    assert (disk.traffic.num_queued_reads, disk.traffic.num_queued_writes, disk.traffic.num_io_workers) == (5, 6, 4)
    assert (valkey.state, valkey.detail) == (admin_pb2.TIER_STATE_FAILING, VALKEY.detail)
    assert valkey.time_to_probe.seconds == 7
    assert (valkey.is_local, valkey.used_bytes, valkey.num_chunks) == (False, 0, 0)
    assert not valkey.traffic.HasField("read_bytes_per_second")


async def test_status_prints_tiers_as_json(server: Server) -> None:
    printed = json.loads((await run("status", "--json", "--address", server.addresses[0])).stdout)
    _, _, shared = printed["status"]["tiers"]
    assert (shared["name"], shared["state"]) == ("shared", "TIER_STATE_FAILING")
    assert shared["traffic"]["num_reads_by_outcome"] == {"failed": "3"}


async def test_top_has_a_line_for_each_tier_and_how_fast_they_read(server: Server, client: AsyncDepotClient) -> None:
    times: dict[str, Any] = {"wait_seconds": 0.0, "duration_seconds": 0.01}
    assert server.bus is not None
    server.bus.publish(TierRead(tier="disk", model_name="m", key=b"k", num_bytes=60 << 20, outcome="arrived", **times))

    async def is_counted() -> bool:
        return any(bucket.tier_read_bytes for bucket in (await client.get_activity()).buckets)

    await eventually(is_counted)
    page = await run("top", "--once", "--address", server.addresses[0], columns=80)
    assert page.exit_code == 0, page.output
    assert max(map(len, page.output.splitlines())) <= 80
    assert re.search(r"^L2 reads .* writes 0 GB/s", page.output, re.MULTILINE)
    assert "disk      46 % of 200 GiB full, found 45 %, 3 chunks damaged, 2 killed" in page.output
    assert "shared    is failing, and is tried again in 8 s: 10.0.0.7:6379" in page.output
    printed = await run("top", "--once", "--json", "--address", server.addresses[0])
    facts = json.loads(printed.stdout)
    assert facts["tier_read_bytes_per_second"] > 0
    assert [(each["name"], each["state"]) for each in facts["tiers"]] == [
        ("disk", "TIER_STATE_AVAILABLE"),
        ("shared", "TIER_STATE_FAILING"),
    ]


async def test_a_line_of_top_names_the_tiers_that_are_not_used_and_no_others(server: Server) -> None:
    command = ("-m", "kvdepot", "top", "--address", server.addresses[0], "--interval", "0.2")

    def first_line() -> str:
        with child("top", *command) as top:
            return next(top.lines())

    line = await asyncio.to_thread(first_line)
    assert "L2 read 0 GB/s  shared failing" in line
    assert "disk" not in line


async def test_top_without_tiers_behind_l1_has_no_lines_of_them(start_server: StartServer) -> None:
    server = await start_server()
    page = await run("top", "--once", "--address", server.addresses[0], columns=80)
    assert "L1 filled" in page.output
    assert "L2 reads" not in page.output

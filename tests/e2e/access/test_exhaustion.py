"""Callers without credentials can't take a depot's memory. Their memory comes back, and others are served."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from kvdepot.v1 import observability_pb2
from tests.e2e.access.calling import Calling, as_is, write_tenants
from tests.e2e.access.conftest import BLUE
from tests.e2e.engines import listening_pid
from tests.fakes.waiting import eventually

MIB = 1 << 20
MOST_MIB = 400  # for all callers without credentials, heap and fragments included; without the bound it is gigabytes
LEFT_MIB = 150  # that may be left of it: arenas of threads, code that was used for the first time
SECONDS = 60.0
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
CHECK, WATCH = (f"/grpc.health.v1.Health/{rpc}" for rpc in ("Check", "Watch"))


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def name_of(num_bytes: int) -> bytes:
    return bytes(health_pb2.HealthCheckRequest(service="x" * num_bytes).SerializeToString())


class Depot:
    """A depot in a process of its own, a client that it serves all the time, and attackers."""

    def __init__(self, address: str, stack: AsyncExitStack) -> None:
        self.pid = listening_pid(address)
        self.base_mib = resident_mib(self.pid)
        self.peak_mib = 0
        self.num_served = 0
        self._address = address
        self._stack = stack
        self._blue = Calling(self._channel(), "blue-token")

    async def attack(self, method: str, message: bytes, num_calls: int, num_connections: int = 4) -> Counter[str]:
        """Begin calls at once and leave them open. Return how they ended as soon as most have ended."""
        channels = [self._channel() for _ in range(num_connections)]
        calls = [
            channels[number % num_connections].unary_stream(method, as_is, as_is)(message)
            for number in range(num_calls)
        ]
        give_up = time.monotonic() + SECONDS
        while time.monotonic() < give_up and sum(call.done() for call in calls) < num_calls - 32:
            await self.is_served()
        ended = Counter([(await call.code()).name if call.done() else "open" for call in calls])
        for call in calls:
            call.cancel()
        return ended

    async def is_served(self) -> None:
        """Check that a call of a tenant is answered."""
        await self._blue("ListSessions", observability_pb2.ListSessionsRequest())
        self.num_served += 1
        self.peak_mib = max(self.peak_mib, resident_mib(self.pid))

    def _channel(self) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(self._address, OPTIONS)
        self._stack.push_async_callback(channel.close)
        return channel


@pytest.fixture
async def depot(start_server_process: Callable[..., str], tmp_path: Path) -> AsyncIterator[Depot]:
    tenants = write_tenants(tmp_path / "tenants.json", BLUE)
    address = start_server_process("--tenants", tenants, "--l1-size", "1MiB", "--l1-huge-pages", "none")
    async with AsyncExitStack() as stack:
        depot = Depot(address, stack)
        await depot.is_served()
        yield depot


async def check_bounded(depot: Depot, attacks: Sequence[Callable[[], Any]]) -> None:
    for attack in attacks:
        await attack()
        assert depot.peak_mib < depot.base_mib + MOST_MIB
    assert depot.num_served > len(attacks)
    # What the heap keeps is given back ten seconds after the last refusal.
    await eventually(lambda: resident_mib(depot.pid) < depot.base_mib + LEFT_MIB, within_seconds=SECONDS)
    await depot.is_served()


async def test_watches_of_long_names_take_no_memory(depot: Depot) -> None:
    async def attack() -> None:
        ended = await depot.attack(WATCH, name_of(15 * MIB), 72)
        assert set(ended) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "open"}

    await check_bounded(depot, [attack] * 2)


async def test_few_watches_of_one_peer_are_open(depot: Depot) -> None:
    async def attack() -> None:
        ended = await depot.attack(WATCH, name_of(10), 3_000)
        assert ended["open"] <= 32
        assert ended["RESOURCE_EXHAUSTED"] > 1_000

    await check_bounded(depot, [attack])


async def test_checks_of_long_names_take_no_memory(depot: Depot) -> None:
    await check_bounded(depot, [lambda: depot.attack(CHECK, name_of(15 * MIB), 100)])


@pytest.mark.parametrize(
    "method", ["kvdepot.v1.CacheService/Lookup", "kvdepot.v1.CacheService/AttachInstance", "other.Service/Method"]
)
async def test_calls_without_credentials_are_refused_unread(depot: Depot, method: str) -> None:
    async def attack() -> None:
        ended = await depot.attack(f"/{method}", bytes(15 * MIB), 100)
        assert ended["open"] + ended["UNAUTHENTICATED"] + ended["UNIMPLEMENTED"] == 100

    await check_bounded(depot, [attack])
    assert depot.peak_mib < depot.base_mib + 100, "gRPC took more of each request than 64 KiB"


async def test_a_stream_of_requests_without_credentials_is_refused_unread(depot: Depot) -> None:
    channel = depot._channel()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    call = channel.stream_unary("/kvdepot.v1.CacheService/StoreInline", as_is, as_is)(endless())
    code = await asyncio.wait_for(call.code(), SECONDS)
    assert code.name in ("UNAUTHENTICATED", "INTERNAL"), call.details()  # a client that goes on sending may miss why
    assert resident_mib(depot.pid) < depot.base_mib + 100


async def test_a_check_is_answered_while_slow_names_come_from_elsewhere(depot: Depot) -> None:
    """Few calls that send a service's name slowly are read at once, and not for long."""
    channel = depot._channel()
    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    slow = [channel.stream_unary(CHECK, as_is, as_is)(slowly()) for _ in range(100)]
    codes = Counter([(await asyncio.wait_for(call.code(), SECONDS)).name for call in slow])
    assert codes["DEADLINE_EXCEEDED"]
    answer = await depot._channel().unary_unary(CHECK, as_is, as_is)(b"", timeout=SECONDS)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_request_that_does_not_come_ends_at_its_deadline(depot: Depot) -> None:
    never = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    metadata = depot._blue.metadata
    call = depot._channel().stream_unary("/kvdepot.v1.CacheService/Lookup", as_is, as_is)(slowly(), metadata=metadata)
    assert (await asyncio.wait_for(call.code(), SECONDS)).name == "DEADLINE_EXCEEDED"

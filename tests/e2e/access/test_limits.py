"""The limits of one tenant: what it may take at once, what it gives back, and others that are still served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvdepot import KvShape
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2, observability_pb2
from service.access.quota import Quota
from service.access.tenants import TenantLimits
from service.errors import TooManyBytes
from service.rpc import fair_queue, interceptor
from service.rpc.fair_queue import MAX_WAITING, FairQueue
from tests.e2e.access.calling import Calling, Denied, as_is
from tests.e2e.access.conftest import BLUE, RED, Connect, StartTenants
from tests.fakes.waiting import eventually

SHAPE = KvShape(num_layers=1, num_blocks=16, block_size=4, num_heads=1, head_size=4, dtype="uint8")
CHUNK_BYTES = 2 * 16 * 4
NOTHING = TenantLimits(max_concurrent_rpcs=1, max_attachments=1, max_bytes_in_flight=100, max_pinned_bytes=11)


async def attach(call: Calling) -> Any:
    stream = call.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(
            instance_id="i", model_name="m", world_size=1, groups=[layouts.VLLM.without_memory(SHAPE)]
        ),
    )
    await stream.read()
    return stream


class SlowStore:
    """An inline store that sends a header and no data."""

    def __init__(self, call: Calling, prompt: int, num_chunks: int = 1) -> None:
        tokens = range(prompt * 1000, prompt * 1000 + 16 * num_chunks)
        header = cache_pb2.StoreInlineHeader(
            instance_id="i", session_id=f"slow {prompt}", prefix=cache_pb2.Prefix(token_ids=tokens)
        )
        self._num_bytes = num_chunks * CHUNK_BYTES
        self._may_send = asyncio.Event()
        self._header = header
        self.call = call.channel.stream_unary(
            "/kvdepot.v1.CacheService/StoreInline",
            request_serializer=cache_pb2.StoreInlineRequest.SerializeToString,
            response_deserializer=cache_pb2.StoreInlineResponse.FromString,
        )(self._messages(), metadata=call.metadata, timeout=30)

    async def _messages(self) -> Any:
        yield cache_pb2.StoreInlineRequest(header=self._header)
        await self._may_send.wait()
        yield cache_pb2.StoreInlineRequest(data=bytes(self._num_bytes))

    async def finish(self) -> Any:
        self._may_send.set()
        return await self.call


async def reason_of(call: Any) -> str:
    with pytest.raises(Denied) as caught:
        try:
            await call
        except Exception as error:
            raise error if isinstance(error, Denied) else Denied(error) from error  # type: ignore[arg-type]
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert caught.value.retry_after_seconds is not None
    return caught.value.reason


async def endless() -> Any:
    await asyncio.Event().wait()
    yield b""


def lists() -> observability_pb2.ListSessionsRequest:
    return observability_pb2.ListSessionsRequest()


async def test_calls_beyond_a_tenants_limit_are_refused_while_anothers_are_served(
    start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(RED | {"limits": {"max_concurrent_rpcs": 2}}, BLUE)
    red, blue = (connect(server.addresses[0], token) for token in ("red-token", "blue-token"))
    stream = await attach(red)
    quota = server.depots.named("red").quota
    slow = [SlowStore(red, number) for number in range(2)]
    await eventually(lambda: quota.num_running == 2)

    assert await reason_of(red("ListSessions", lists())) == "TOO_MANY_RPCS"
    for _ in range(10):
        await blue("ListSessions", lists())
    assert quota.num_refused == {"TOO_MANY_RPCS": 1}

    slow[0].call.cancel()
    await eventually(lambda: quota.num_running == 1)
    await red("ListSessions", lists())
    assert (await slow[1].finish()).stored_tokens == 16
    await eventually(lambda: quota.num_running == 0)
    stream.cancel()


async def test_a_denial_is_not_had_at_once_while_others_are_served(
    start_tenants: StartTenants, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_tenants(BLUE)
    monkeypatch.setattr(interceptor, "DENIED_AFTER_SECONDS", 60.0)
    unknown, blue = (connect(server.addresses[0], token) for token in ("wrong", "blue-token"))
    denied = asyncio.ensure_future(unknown("ListSessions", lists()))
    await eventually(lambda: server._access.audit.num_denied["", "TOKEN_UNKNOWN"] == 1)
    await blue("ListSessions", lists())
    assert not denied.done()
    denied.cancel()


async def test_while_one_floods_all_calls_of_another_are_served(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(RED | {"limits": {"max_concurrent_rpcs": 4}}, BLUE)
    red, blue = (connect(server.addresses[0], token) for token in ("red-token", "blue-token"))
    stream = await attach(red)
    slow = [SlowStore(red, number) for number in range(4)]
    await eventually(lambda: server.depots.named("red").quota.num_running == 4)
    stop = asyncio.Event()
    num_refused = 0

    async def flood() -> None:
        nonlocal num_refused
        while not stop.is_set():
            assert await reason_of(red("ListSessions", lists())) == "TOO_MANY_RPCS"
            num_refused += 1

    async with asyncio.TaskGroup() as flooding:
        for _ in range(8):
            flooding.create_task(flood())
        await eventually(lambda: num_refused > 0)
        for _ in range(50):
            await blue("ListSessions", lists())
        stop.set()
    assert server.depots.named("blue").quota.num_refused == {}
    assert server.depots.named("red").quota.num_refused["TOO_MANY_RPCS"] == num_refused >= 8
    for each in slow:
        assert (await each.finish()).stored_tokens == 16
    stream.cancel()


async def test_a_full_depot_refuses_tenants_that_take_more_than_their_share(
    start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(RED, BLUE, max_concurrent_rpcs=4)
    red, blue = (connect(server.addresses[0], token) for token in ("red-token", "blue-token"))
    streams = [await attach(call) for call in (red, blue)]
    slow = [SlowStore(red, number) for number in range(4)]
    await eventually(lambda: server.depots.named("red").quota.num_running == 4)
    await blue("ListSessions", lists())
    assert await reason_of(red("ListSessions", lists())) == "TOO_MANY_RPCS"
    for each in slow:
        assert (await each.finish()).stored_tokens == 16
    await red("ListSessions", lists())
    for stream in streams:
        stream.cancel()


async def test_bytes_in_flight_are_limited_and_given_back(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(RED | {"limits": {"max_bytes_in_flight": str(3 * CHUNK_BYTES)}}, BLUE)
    red, blue = (connect(server.addresses[0], token) for token in ("red-token", "blue-token"))
    streams = [await attach(call) for call in (red, blue)]
    quota = server.depots.named("red").quota
    first = SlowStore(red, 1, num_chunks=2)
    await eventually(lambda: quota.bytes_in_flight == 2 * CHUNK_BYTES)
    assert await reason_of(SlowStore(red, 2, num_chunks=2).finish()) == "TOO_MANY_BYTES"
    assert (await SlowStore(red, 3).finish()).stored_tokens == 16
    assert (await SlowStore(blue, 2, num_chunks=2).finish()).stored_tokens == 32
    first.call.cancel()
    await eventually(lambda: quota.bytes_in_flight == 0)
    assert (await SlowStore(red, 4, num_chunks=4).finish()).stored_tokens == 64, "alone, more than the limit may move"
    assert quota.bytes_in_flight == 0
    assert quota.num_refused == {"TOO_MANY_BYTES": 1}
    for stream in streams:
        stream.cancel()


async def test_retrieves_count_as_bytes_in_flight(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(RED | {"limits": {"max_bytes_in_flight": str(CHUNK_BYTES)}})
    red = connect(server.addresses[0], "red-token")
    stream = await attach(red)
    await SlowStore(red, 1).finish()
    prefix = cache_pb2.Prefix(token_ids=range(1000, 1016))
    (found,) = await red("Lookup", cache_pb2.LookupRequest(instance_id="i", session_id="s", prefix=prefix))
    request = cache_pb2.RetrieveInlineRequest(instance_id="i", session_id="s", lease_id=found.lease.lease_id)
    slow = SlowStore(red, 2)
    await eventually(lambda: server.depots.named("red").quota.bytes_in_flight == CHUNK_BYTES)
    assert await reason_of(red("RetrieveInline", request)) == "TOO_MANY_BYTES"
    await slow.finish()
    assert sum(len(piece.data) for piece in await red("RetrieveInline", request)) == CHUNK_BYTES
    stream.cancel()


def test_an_allowance_gives_back_what_a_failed_move_took() -> None:
    quota = Quota("red", NOTHING)
    with pytest.raises(ZeroDivisionError), quota.in_flight(60):
        with pytest.raises(TooManyBytes), quota.in_flight(41):
            pass
        with quota.in_flight(40):
            assert quota.bytes_in_flight == 100
        raise ZeroDivisionError
    assert quota.bytes_in_flight == 0


# Fairness


class Order:
    """Calls in a fair queue, and the order in which they began."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.began: list[str] = []
        self._calls: list[asyncio.Task[None]] = []

    def have_called(self, clients: str) -> None:
        """Let several clients be known."""
        for client in clients:
            self.queue.slot(client, self.queue.on_arrival())

    def call(self, client: str) -> asyncio.Task[None]:
        async def run() -> None:
            begin = self.queue.slot(client, self.queue.on_arrival())
            if begin is not None:
                await begin
            self.began.append(client)

        task = asyncio.create_task(run())
        self._calls.append(task)
        return task

    async def all_began(self) -> str:
        await asyncio.wait(self._calls, timeout=10)
        return "".join(self.began)


async def test_a_client_with_few_calls_does_not_wait_for_all_of_one_with_many() -> None:
    order = Order()
    order.have_called("ba")
    for client in "a" * 20 + "b" + "a" * 20 + "cc":
        order.call(client)
    began = await order.all_began()
    assert sorted(began) == sorted("a" * 40 + "bcc")
    assert max(began.index("b"), began.rindex("c")) < 10, began


async def test_clients_that_all_have_many_calls_alternate() -> None:
    order = Order()
    order.have_called("cba")
    for client in "a" * 20 + "b" * 20 + "c" * 20:
        order.call(client)
    began = await order.all_began()
    for client in "abc":
        assert 8 <= began[:30].count(client) <= 12, began


async def test_no_call_begins_while_gRPC_hands_calls_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MAX_HOLD_SECONDS", 60.0)
    order = Order()
    order.have_called("ba")
    for client in "aaab":
        order.call(client)
    await asyncio.sleep(0)
    arrival = order.queue.on_arrival()
    for _ in range(3 * fair_queue.GRACE_PASSES):
        await asyncio.sleep(0)
    assert not order.began
    order.queue.on_departure(arrival)
    assert sorted(await order.all_began()) == sorted("aaab")


async def test_a_call_whose_request_does_not_come_delays_no_other() -> None:
    order = Order()
    order.have_called("ba")
    order.queue.on_arrival()
    for client in "abab":
        order.call(client)
    assert sorted(await order.all_began()) == sorted("abab")


@pytest.mark.parametrize("flags", [{}, {"disable_metrics": False, "prometheus_port": 0}])
async def test_every_call_that_arrives_takes_a_slot_or_departs(
    flags: dict[str, Any], start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(RED | {"limits": {"max_concurrent_rpcs": 1}}, BLUE, **flags)
    queue = server._interceptor._fair_queue
    red, blue, unknown = (connect(server.addresses[0], token) for token in ("red-token", "blue-token", "wrong"))
    stream = await attach(red)
    slow = SlowStore(red, 1)
    await eventually(lambda: server.depots.named("red").quota.num_running == 1)
    await blue("ListSessions", lists())
    for refused in (red("ListSessions", lists()), unknown("ListSessions", lists())):
        with pytest.raises(Denied):
            await refused
    cancelled = blue.channel.stream_unary("/kvdepot.v1.CacheService/Lookup", as_is, as_is)(
        endless(), metadata=blue.metadata
    )
    await eventually(lambda: queue._num_arriving == 1)
    cancelled.cancel()
    slow.call.cancel()
    stream.cancel()
    await eventually(lambda: queue._num_arriving == 0)


async def test_calls_of_one_client_begin_in_the_order_in_which_they_came() -> None:
    queue, began = FairQueue(), []

    async def run(client: str, number: int) -> None:
        begin = queue.slot(client, queue.on_arrival())
        if begin is not None:
            await begin
        began.append((client, number))

    await asyncio.gather(*(run("ab"[number % 2], number) for number in range(20)))
    assert [number for client, number in began if client == "a"] == list(range(0, 20, 2))
    assert [number for client, number in began if client == "b"] == list(range(1, 20, 2))


async def test_a_client_that_is_alone_waits_for_nothing() -> None:
    queue = FairQueue()
    assert [queue.slot("a", queue.on_arrival()) for _ in range(100)] == [None] * 100


async def test_a_call_that_is_cancelled_while_it_waits_delays_no_other() -> None:
    order = Order()
    calls = [order.call(client) for client in "abababab"]
    await asyncio.sleep(0)
    for call in calls[2:6]:
        call.cancel()
    assert sorted(await order.all_began()) == sorted("aabb")


async def test_what_waits_is_bounded() -> None:
    order = Order()
    order.have_called("ba")
    queue = order.queue
    waiting = [queue.slot("a", queue.on_arrival()) for _ in range(MAX_WAITING + 100)]
    assert sum(begin is not None for begin in waiting) <= MAX_WAITING
    assert waiting[-1] is None
    await asyncio.wait([begin for begin in waiting if begin is not None], timeout=30)

"""Nothing that one tenant does through any RPC is seen by another.

Blue makes calls to two depots. In one of them red also makes calls of every kind, under the same names, for the same
prompts, and with blue's own leases. If blue gets the same answers, bytes and events from both depots, then
red has not reached anything of blue's, nor blue anything of red's, not even that it exists.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvdepot import KvShape, SharedBuffer
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from service.l1.keys import CHUNK_FORMAT, Prefix, RankIdentity, chunk_keys
from service.server import Server
from tests.e2e.access.calling import METHODS, Calling, Denied, write_tenants
from tests.e2e.servers import running_server
from tests.fakes.waiting import eventually

NUM_PAIRS = 1_000  # more than there are examples, with those that make a failure smaller
CHUNK_SIZE = 16
SHAPE = KvShape(num_layers=1, num_blocks=16, block_size=4, num_heads=1, head_size=4, dtype="uint8")
CHUNK_BYTES = 2 * CHUNK_SIZE * 4
PROMPTS = [list(range(seed * 100, seed * 100 + 2 * CHUNK_SIZE)) for seed in range(2)]
NAMES = ("a", "b")
END = "the end"  # a session; its end is the last event that a watcher waits for


@dataclass(frozen=True, slots=True)
class Step:
    """A call: its tenant, RPC, names and prompt, and which of all leases so far it uses."""

    tenant: str
    rpc: str
    instance: str = "a"
    session: str = "a"
    prompt: int = 0
    lease: int = 0


@dataclass(slots=True)
class Party:
    """A tenant in one depot: its memory, its attachments, and the answers that it got, as text."""

    call: Calling
    depot: Any
    mark: int
    buffers: dict[str, SharedBuffer] = field(default_factory=dict)
    attachments: dict[str, Any] = field(default_factory=dict)
    leases: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)


class Site:
    """One depot, with the two tenants of one example."""

    def __init__(self, server: Server, channel: grpc.aio.Channel, number: int) -> None:
        self._server = server
        self.parties = {
            name: Party(Calling(channel, f"{name}-{number}"), self._depot(f"{name}-{number}"), mark)
            for mark, name in ((1, "red"), (2, "blue"))
        }
        self._tenant_names = re.compile(rf"(red|blue)-{number}")

    def _depot(self, name: str) -> Any:
        assert self._server._access.tenants is not None
        return self._server.depots.of(self._server._access.tenants.value.by_name[name])

    def lease(self, step: Step) -> str:
        """Return one of the leases that were granted here. Blue's choice never includes red's leases."""
        return self._one_of(step, {name: party.leases for name, party in self.parties.items()})

    def pin(self, step: Step) -> str:
        """Return one of the pins, as `lease` does."""
        return self._one_of(step, {name: party.pins for name, party in self.parties.items()})

    def _one_of(self, step: Step, by_tenant: dict[str, list[str]]) -> str:
        own = by_tenant[step.tenant]
        every = by_tenant["blue"] + own if step.tenant == "red" else own
        return every[step.lease % len(every)] if every else "none"

    async def do(self, step: Step) -> None:
        party = self.parties[step.tenant]
        try:
            answer: Any = await ACTIONS[step.rpc](self, party, step)
        except Denied as denied:
            answer = denied.args
        party.answers.append(self.plain(party, step.rpc, answer))

    def plain(self, party: Party, rpc: str, answer: Any) -> Any:
        """Return an answer as text, without what differs from run to run: times, ids of leases and of the start."""
        if isinstance(answer, list):
            return [self.plain(party, rpc, each) for each in answer]
        if not isinstance(answer, (tuple, str, bytes, type(None))):
            answer = MessageToDict(answer, always_print_fields_with_no_presence=True)
        text = self._tenant_names.sub(r"\1", repr(answer))
        text = text.replace(self._server.depots.incarnation, "this start of the depot")
        for number, lease_id in enumerate(party.leases):
            text = text.replace(lease_id, f"lease {number}")
        for number, pin_id in enumerate(party.pins):
            text = text.replace(pin_id, f"pin {number}")
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "a moment", text)
        text = re.sub(r"'(duration|startOffset)': '[\d.]+s'", "", text)
        text = re.sub(r"'(duration|start|expire)_[a-z]+': [\d.e-]+", "", text)
        return rpc, re.sub(r"[\d.]+ seconds ago", "ago", text)

    async def close(self) -> None:
        for party in self.parties.values():
            for stream in party.attachments.values():
                stream.cancel()
            await eventually(lambda party=party: len(party.depot.instances) == 0)  # type: ignore[misc]
            for buffer in party.buffers.values():
                buffer.close()


# What each RPC is asked


async def attach(site: Site, party: Party, step: Step) -> Any:
    if step.instance in party.attachments:  # one that is would wait for the other to end
        return "attached"
    buffer = party.buffers.get(step.instance)
    if buffer is None:
        buffer = party.buffers[step.instance] = SharedBuffer.create(layouts.NL_X_TWO_NB_BS_NH_HS.size_bytes(SHAPE))
        buffer.array[:] = party.mark
    stream = party.call.start(
        "AttachInstance",
        cache_pb2.AttachInstanceRequest(
            instance_id=step.instance,
            model_name="model",
            world_size=1,
            groups=[layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SHAPE)],
            regions=[buffer.region],
        ),
    )
    try:
        message = await stream.read()
    except grpc.aio.AioRpcError as error:
        raise Denied(error) from error
    party.attachments[step.instance] = stream
    return message


async def detach(site: Site, party: Party, step: Step) -> Any:
    stream = party.attachments.pop(step.instance, None)
    answer = await party.call("DetachInstance", cache_pb2.DetachInstanceRequest(instance_id=step.instance))
    if stream is not None:
        assert await stream.read() is grpc.aio.EOF
    return answer


async def lookup(site: Site, party: Party, step: Step) -> Any:
    request = cache_pb2.LookupRequest(
        **ids(step), prefix=cache_pb2.Prefix(token_ids=PROMPTS[step.prompt], cache_salt="salt" * (step.lease % 2))
    )
    (answer,) = await party.call("Lookup", request)
    if answer.HasField("lease"):
        party.leases.append(answer.lease.lease_id)
    return answer


async def store(site: Site, party: Party, step: Step) -> Any:
    request = cache_pb2.StoreRequest(
        **ids(step),
        prefix=cache_pb2.Prefix(token_ids=PROMPTS[step.prompt]),
        block_tables=[cache_pb2.BlockTable(block_ids=range(8))],
    )
    return await party.call("Store", request)


async def retrieve(site: Site, party: Party, step: Step) -> Any:
    buffer = party.buffers.get(step.instance)
    request = cache_pb2.RetrieveRequest(
        **ids(step), lease_id=site.lease(step), block_tables=[cache_pb2.BlockTable(block_ids=range(8, 16))]
    )
    try:
        answer = await party.call("Retrieve", request)
        return [*answer, bytes(buffer.array) if buffer is not None else b""]
    finally:
        if buffer is not None:
            assert set(np.unique(buffer.array)) <= {party.mark}, "another tenant's bytes are in the engine's blocks"


async def release(site: Site, party: Party, step: Step) -> Any:
    return await party.call("ReleaseLease", cache_pb2.ReleaseLeaseRequest(lease_id=site.lease(step)))


async def store_inline(site: Site, party: Party, step: Step) -> Any:
    prefix = cache_pb2.Prefix(token_ids=PROMPTS[step.prompt], cache_salt="salt" * (step.lease % 2))
    header = cache_pb2.StoreInlineHeader(**ids(step), prefix=prefix)
    data = bytes([party.mark]) * (2 * CHUNK_BYTES)
    messages = [cache_pb2.StoreInlineRequest(header=header), cache_pb2.StoreInlineRequest(data=data)]
    return await party.call("StoreInline", messages)


async def retrieve_inline(site: Site, party: Party, step: Step) -> Any:
    pieces = await party.call("RetrieveInline", cache_pb2.RetrieveInlineRequest(**ids(step), lease_id=site.lease(step)))
    assert {byte for piece in pieces for byte in piece.data} <= {party.mark}, "another tenant's bytes were sent"
    return pieces


async def end_session(site: Site, party: Party, step: Step) -> Any:
    return await party.call("EndSession", cache_pb2.EndSessionRequest(**ids(step)))


async def pin_prefix(site: Site, party: Party, step: Step) -> Any:
    request = cache_pb2.PinPrefixRequest(
        instance_id=step.instance,
        prefix=cache_pb2.Prefix(token_ids=PROMPTS[step.prompt]),
        ttl=Duration(seconds=1_000),
        fixed_expire_time=bool(step.lease % 2),
    )
    (answer,) = await party.call("PinPrefix", request)
    if answer.HasField("pin") and answer.pin.pin_id not in party.pins:
        party.pins.append(answer.pin.pin_id)
    return answer


async def unpin_prefix(site: Site, party: Party, step: Step) -> Any:
    return await party.call("UnpinPrefix", cache_pb2.UnpinPrefixRequest(pin_id=site.pin(step)))


async def list_pins(site: Site, party: Party, step: Step) -> Any:
    return await party.call("ListPins", cache_pb2.ListPinsRequest())


async def prefetch(site: Site, party: Party, step: Step) -> Any:
    prefix = cache_pb2.Prefix(token_ids=PROMPTS[step.prompt])
    return await party.call("Prefetch", cache_pb2.PrefetchRequest(instance_id=step.instance, prefix=prefix))


async def report(site: Site, party: Party, step: Step) -> Any:
    record = observability_pb2.BlockAllocationRecord(session_id=step.session, block_ids=[1], token_ids=range(4))
    request = observability_pb2.ReportBlockAllocationRequest(
        instance_id=step.instance, model_name="model", block_size=4, records=[record]
    )
    return await party.call("ReportBlockAllocation", request)


async def watch(site: Site, party: Party, step: Step) -> Any:
    return await party.call("WatchEvents", observability_pb2.WatchEventsRequest(tenant="" if step.prompt else "blue"))


async def list_sessions(site: Site, party: Party, step: Step) -> Any:
    instance_id = step.instance if step.prompt else ""
    answer = await party.call(
        "ListSessions", observability_pb2.ListSessionsRequest(instance_id=instance_id, page_size=2)
    )
    token = answer[0].next_page_token
    if token:
        answer += await party.call(
            "ListSessions", observability_pb2.ListSessionsRequest(instance_id=instance_id, page_token=token)
        )
    return answer


async def get_session(site: Site, party: Party, step: Step) -> Any:
    return await party.call("GetSession", observability_pb2.GetSessionRequest(**ids(step)))


async def explain_prefix(site: Site, party: Party, step: Step) -> Any:
    request = observability_pb2.ExplainPrefixRequest(
        instance_id=step.instance, prefix=cache_pb2.Prefix(token_ids=PROMPTS[step.prompt])
    )
    return await party.call("ExplainPrefix", request)


async def get_activity(site: Site, party: Party, step: Step) -> Any:
    """Return no counts: which second has an event differs from run to run. test_tenants_activity.py sums counts."""
    await party.call("GetActivity", observability_pb2.GetActivityRequest(tenant="blue" if step.prompt else ""))
    return "activity"


async def get_status(site: Site, party: Party, step: Step) -> Any:
    return await party.call("GetStatus", admin_pb2.GetStatusRequest())


async def list_instances(site: Site, party: Party, step: Step) -> Any:
    return await party.call("ListInstances", admin_pb2.ListInstancesRequest())


async def clear_cache(site: Site, party: Party, step: Step) -> Any:
    return await party.call("ClearCache", admin_pb2.ClearCacheRequest(force=True))


async def set_log_level(site: Site, party: Party, step: Step) -> Any:
    return await party.call("SetLogLevel", admin_pb2.SetLogLevelRequest(level=admin_pb2.LOG_LEVEL_ERROR))


async def get_hit_curve(site: Site, party: Party, step: Step) -> Any:
    return await party.call("GetHitCurve", admin_pb2.GetHitCurveRequest())


def ids(step: Step) -> dict[str, Any]:
    return {"instance_id": step.instance, "session_id": step.session}


ACTIONS: dict[str, Callable[[Site, Party, Step], Awaitable[Any]]] = {
    "AttachInstance": attach,
    "DetachInstance": detach,
    "Lookup": lookup,
    "Store": store,
    "Retrieve": retrieve,
    "ReleaseLease": release,
    "StoreInline": store_inline,
    "RetrieveInline": retrieve_inline,
    "EndSession": end_session,
    "PinPrefix": pin_prefix,
    "UnpinPrefix": unpin_prefix,
    "ListPins": list_pins,
    "Prefetch": prefetch,
    "ReportBlockAllocation": report,
    "WatchEvents": watch,
    "ListSessions": list_sessions,
    "GetSession": get_session,
    "ExplainPrefix": explain_prefix,
    "GetActivity": get_activity,
    "GetStatus": get_status,
    "ListInstances": list_instances,
    "ClearCache": clear_cache,
    "SetLogLevel": set_log_level,
    "GetHitCurve": get_hit_curve,
}


def test_every_rpc_is_tried() -> None:
    """A new RPC needs an entry here: how might a tenant reach another one through it?"""
    assert set(ACTIONS) == set(METHODS)


# The two depots


@dataclass(slots=True)
class Twins:
    """One depot in which red is busy, and one in which it never calls."""

    servers: Sequence[Server]
    channels: Sequence[grpc.aio.Channel]
    numbers: Any = field(default_factory=lambda: iter(range(NUM_PAIRS)))


@pytest.fixture(scope="module")
async def twins(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Twins]:
    tenants = [
        {"name": f"{name}-{number}", "token": f"{name}-{number}"}
        for number in range(NUM_PAIRS)
        for name in ("red", "blue")
    ]
    path = write_tenants(tmp_path_factory.mktemp("tenants") / "tenants.json", *tenants)
    flags = {"chunk_size": CHUNK_SIZE, "tenants": path, "disable_logging": True, "max_wait": "1s"}
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(running_server(flags)) for _ in range(2)]
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(server.addresses[0])) for server in servers
        ]
        yield Twins(servers, channels)


async def compare(twins: Twins, steps: Sequence[Step]) -> None:
    number = next(twins.numbers)
    by_site = []
    for server, channel, red_calls in zip(twins.servers, twins.channels, (True, False), strict=True):
        site = Site(server, channel, number)
        blue = site.parties["blue"]
        watching = blue.call.start("WatchEvents", observability_pb2.WatchEventsRequest())
        await watching.initial_metadata()
        try:
            for step in steps:
                if red_calls or step.tenant == "blue":
                    await site.do(step)
            events = await asyncio.wait_for(_events(site, blue, watching), timeout=20)
        finally:
            watching.cancel()
            await site.close()
        by_site.append([*blue.answers, *events])
    with_red, without_red = by_site
    assert with_red == without_red


async def _events(site: Site, blue: Party, watching: Any) -> list[Any]:
    """Return all events that blue has watched."""
    for rpc in ("ReportBlockAllocation", "EndSession"):
        await site.do(Step("blue", rpc, session=END))
    events = []
    while True:
        event = (await watching.read()).event
        events.append(site.plain(blue, "an event", event))
        if (event.type, event.session_id) == ("SessionEnded", END):
            return events


STEPS = st.builds(
    Step,
    st.sampled_from(["red", "blue"]),
    st.sampled_from(sorted(ACTIONS)),
    instance=st.sampled_from(NAMES),
    session=st.sampled_from(NAMES),
    prompt=st.integers(0, 1),
    lease=st.integers(0, 3),
)
PREPARED = [
    *(Step(tenant, "AttachInstance") for tenant in ("blue", "red")),
    Step("blue", "StoreInline"),
    Step("blue", "Lookup"),
]
"""A prompt is stored and leased: there is something to reach."""


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=25))
@example([Step("red", rpc) for rpc in ACTIONS] + [Step("blue", rpc) for rpc in ACTIONS])
@example([Step(tenant, rpc) for rpc in ACTIONS for tenant in ("red", "blue")])
@example([Step(tenant, rpc, prompt=1, lease=1) for rpc in reversed(ACTIONS) for tenant in ("red", "blue")])
@example([Step("red", "StoreInline", prompt=1), Step("blue", "ExplainPrefix", prompt=1)])
async def test_what_one_tenant_does_is_nothing_to_another(twins: Twins, steps: list[Step]) -> None:
    await compare(twins, [*PREPARED, *steps])


@pytest.mark.parametrize(
    ("first", "then"), list(itertools.product(ACTIONS, ["Lookup", "Retrieve", "GetSession", "ExplainPrefix"]))
)
async def test_no_single_call_changes_the_next_answer_to_the_other(twins: Twins, first: str, then: str) -> None:
    await compare(twins, [*PREPARED, Step("red", first), Step("blue", then), Step("blue", "ListSessions")])


async def test_the_lease_of_another_tenant_is_not_found(twins: Twins) -> None:
    number = next(twins.numbers)
    site = Site(twins.servers[0], twins.channels[0], number)
    try:
        for step in PREPARED:
            await site.do(step)
        for rpc in ("ReportBlockAllocation", "Retrieve", "RetrieveInline"):
            await site.do(Step("red", rpc))
        lease_id = site.parties["blue"].leases[0]
        for _, answer in site.parties["red"].answers[-2:]:
            assert "LEASE_NOT_FOUND" in answer
            assert f"there is no lease '{lease_id}' of this session" in answer
    finally:
        await site.close()


@given(st.text(), st.integers(1, 4), st.text(), st.text(), st.text(min_size=1), st.text(min_size=1))
def test_keys_cover_the_tenant_and_are_what_they_were_without_one(
    model_name: str, world_size: int, salt: str, adapter: str, tenant: str, other: str
) -> None:
    prefix = Prefix(token_ids=np.zeros(0, np.uint32), cache_salt=salt, adapter=adapter)

    def namespace(*tenant: str) -> bytes:
        return RankIdentity.of(model_name, world_size, 0, (), CHUNK_SIZE, *tenant).namespace(prefix)

    assert namespace() == namespace("")
    assert namespace(tenant) != namespace()
    assert (namespace(tenant) == namespace(other)) == (tenant == other)


def test_a_key_without_tenants_is_the_one_that_other_depots_of_this_format_make() -> None:
    assert CHUNK_FORMAT == 1, "another key needs another format, and another format another key"
    prefix = Prefix(token_ids=np.arange(CHUNK_SIZE, dtype=np.uint32))
    (key,) = chunk_keys(RankIdentity.of("m", 1, 0, (), CHUNK_SIZE).namespace(prefix), prefix, CHUNK_SIZE)
    assert key.hex() == "9af49a4b0092a02f0cc4d7c419b84e358324b6f1ce53fd53f428ab45d6ccd921"


# Memory


async def test_memory_that_a_tenant_has_attached_no_other_can_attach(tmp_path: Path, twins: Twins) -> None:
    number = next(twins.numbers)
    site = Site(twins.servers[0], twins.channels[0], number)
    red, blue = site.parties["red"], site.parties["blue"]
    try:
        await site.do(PREPARED[0])
        red.buffers["a"] = blue.buffers["a"]  # it has the name
        await site.do(PREPARED[1])
        assert "REGION_FORBIDDEN" in repr(red.answers[-1])
        assert not red.attachments
        assert twins.servers[0]._access.audit.num_denied[f"red-{number}", "REGION_FORBIDDEN"] == 1
        blue.attachments.pop("a").cancel()
        await eventually(lambda: len(blue.depot.instances) == 0)
        await asyncio.sleep(0.05)
        await site.do(PREPARED[1])
        assert red.attachments, "memory without an attachment is free"
    finally:
        red.buffers.clear()
        for stream in red.attachments.values():
            stream.cancel()
        await site.close()

"""Authentication by token: accepted and refused callers, the reasons, and the audit log."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import service.errors
from kvdepot.v1 import admin_pb2, observability_pb2
from service.access.credentials import Authenticator
from service.access.tenants import Tenant, TenantLimits, Tenants, Token, token_hash
from service.errors import InsecureTransport
from service.rpc.interceptor import DENIALS
from telemetry.metrics import attributes
from tests.e2e.access.calling import METHODS, Calling, Denied, empty_request, sha256
from tests.e2e.access.conftest import BLUE, OPS, Connect, StartTenants
from tests.e2e.servers import StartServer
from tests.fakes.waiting import eventually

LIMITS = TenantLimits(max_concurrent_rpcs=1, max_attachments=1, max_bytes_in_flight=1, max_pinned_bytes=11)


async def refusal(call: Calling, rpc: str) -> tuple[str, str]:
    with pytest.raises(Denied) as caught:
        await call(rpc, empty_request(rpc))
    return caught.value.code, caught.value.reason


@pytest.mark.parametrize("rpc", METHODS)
async def test_no_rpc_serves_a_caller_without_credentials(
    rpc: str, start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants()
    assert await refusal(connect(server.addresses[0]), rpc) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")


async def test_each_kind_of_wrong_token_is_refused_in_its_own_words(
    start_tenants: StartTenants, connect: Connect
) -> None:
    past, future = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    tokens = [
        {"sha256": sha256("old"), "expire_time": past.isoformat()},
        {"sha256": sha256("new"), "expire_time": future.isoformat()},
    ]
    server = await start_tenants({"name": "red", "tokens": tokens}, BLUE)
    call = connect(server.addresses[0])
    for shown, reason in (
        (["Bearer blue-toke"], "TOKEN_UNKNOWN"),
        (["Bearer blue-tokens"], "TOKEN_UNKNOWN"),
        (["Bearer "], "TOKEN_UNKNOWN"),
        (["blue-token"], "TOKEN_UNKNOWN"),
        (["Basic Ymx1ZTpibHVlLXRva2Vu"], "TOKEN_UNKNOWN"),
        ([f"Bearer {sha256('blue-token')}"], "TOKEN_UNKNOWN"),
        (["Bearer old"], "TOKEN_EXPIRED"),
        (["Bearer blue-token", "Bearer new"], "TOKEN_UNKNOWN"),
    ):
        call.metadata = tuple(("authorization", value) for value in shown)
        assert await refusal(call, "ListSessions") == ("UNAUTHENTICATED", reason), shown
    for value in ("Bearer blue-token", "bearer new", "BEARER  new "):
        call.metadata = (("authorization", value),)
        await call("ListSessions", observability_pb2.ListSessionsRequest())


async def test_admin_service_is_for_admins(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants()
    blue, ops = (connect(server.addresses[0], token) for token in ("blue-token", "ops-token"))
    admin = [method.name for method in admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods]
    for rpc in admin:
        assert await refusal(blue, rpc) == ("PERMISSION_DENIED", "ADMIN_ONLY")
        await ops(rpc, empty_request(rpc))
    assert set(admin) >= {"GetStatus", "ClearCache", "SetLogLevel"}


async def test_only_an_admin_sees_another_tenant(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants()
    blue, ops = (connect(server.addresses[0], token) for token in ("blue-token", "ops-token"))
    ids = {"instance_id": "i", "session_id": "s"}
    explained = {"instance_id": "i"}
    cases = {"ListSessions": {}, "GetSession": ids, "GetActivity": {}, "WatchEvents": {}, "ExplainPrefix": explained}
    for rpc, fields in cases.items():
        request = empty_request(rpc)
        for name, value in (fields | {"tenant": "red"}).items():
            setattr(request, name, value)
        with pytest.raises(Denied) as caught:
            await blue(rpc, request)
        assert (caught.value.code, caught.value.reason) == ("PERMISSION_DENIED", "OTHER_TENANT"), rpc
    await ops("ListSessions", observability_pb2.ListSessionsRequest(tenant="red"))
    await blue("ListSessions", observability_pb2.ListSessionsRequest(tenant="blue"))


async def test_without_tenants_no_caller_needs_credentials(start_server: StartServer, connect: Connect) -> None:
    server = await start_server(chunk_size=16)
    for token in ("", "whatever"):
        (status,) = await connect(server.addresses[0], token)("GetStatus", admin_pb2.GetStatusRequest())
        assert not status.tenants


async def test_health_is_for_everybody(start_tenants: StartTenants) -> None:
    server = await start_tenants()
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("token", "flags", "code"),
    [
        ("", {}, "UNAUTHENTICATED"),
        ("wrong", {}, "UNAUTHENTICATED"),
        ("blue-token", {}, "OK"),
        ("", {"open_reflection": True}, "OK"),
    ],
)
async def test_reflection_is_for_tenants_unless_it_is_open(
    token: str, flags: dict[str, Any], code: str, start_tenants: StartTenants, connect: Connect
) -> None:
    server = await start_tenants(**flags)
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        call = stub.ServerReflectionInfo(iter([request]), metadata=metadata)
        found = [
            service.name async for message in _until_failure(call) for service in message.list_services_response.service
        ]
        assert (await call.code()).name == code
    assert ("kvdepot.v1.CacheService" in found) == (code == "OK")


async def _until_failure(call: Any) -> Any:
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError:
        return


# Where a token may come from


class Connection:
    """The facts of a call that authentication uses."""

    def __init__(self, peer: str) -> None:
        self._peer = peer

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", "Bearer t"),)

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


@pytest.mark.parametrize(
    ("peer", "is_safe"),
    [
        *((safe, True) for safe in ("unix:", "ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5", "ipv6:%5B::ffff:127.0.0.1%5D:5")),
        *((unsafe, False) for unsafe in ("ipv4:10.0.0.1:5", "ipv4:1.127.0.1:5", "ipv6:%5Bfe80::1%5D:5", "")),
    ],
)
def test_a_token_over_plain_tcp_comes_from_this_machine(peer: str, is_safe: bool) -> None:
    tenants = Tenants([Tenant(name="red", is_admin=False, limits=LIMITS, tokens=(Token(hash=token_hash("t")),))])
    context: Any = Connection(peer)
    for over_tls, allowed in ((True, False), (False, True)):
        either = Authenticator(tenants, over_tls=over_tls, tokens_over_plain_tcp=allowed)
        assert either.authenticate(context).tenant.name == "red"
    strict = Authenticator(tenants, over_tls=False, tokens_over_plain_tcp=False)
    if is_safe:
        assert strict.authenticate(context).tenant.name == "red"
    else:
        with pytest.raises(InsecureTransport):
            strict.authenticate(context)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "[::]:0"])
async def test_a_token_over_loopback_is_taken(listen: str, start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(listen=(listen,))
    port = server.addresses[0].rpartition(":")[2]
    hosts = {"127.0.0.1:0": ["127.0.0.1"], "[::1]:0": ["[::1]"], "[::]:0": ["127.0.0.1", "[::1]"]}[listen]
    for host in hosts:
        await connect(f"{host}:{port}", "blue-token")("ListSessions", observability_pb2.ListSessionsRequest())


async def test_over_a_unix_socket_a_token_is_asked_for_and_taken(
    start_tenants: StartTenants, connect: Connect, tmp_path: Path
) -> None:
    server = await start_tenants(listen=(f"unix:{tmp_path}/a.sock",))
    assert await refusal(connect(server.addresses[0]), "Lookup") == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
    await connect(server.addresses[0], "blue-token")("ListSessions", observability_pb2.ListSessionsRequest())


# The audit log


def audited(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [dict(each.args) | {"event": each.event} for each in caplog.records if each.name == "kvdepot.audit"]  # type: ignore[arg-type, attr-defined]


async def test_each_denied_call_has_a_line_an_event_and_a_count(
    start_tenants: StartTenants, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_tenants(disable_metrics=False, prometheus_port=0)
    ops = connect(server.addresses[0], "ops-token")
    watching = ops.start("WatchEvents", observability_pb2.WatchEventsRequest(event_types=["CallDenied"]))
    await watching.initial_metadata()
    await refusal(connect(server.addresses[0]), "Lookup")
    await refusal(connect(server.addresses[0], "blue-token"), "GetStatus")
    lines = audited(caplog)
    assert [(each["rpc"], each["tenant"], each["status"], each["reason"]) for each in lines] == [
        ("kvdepot.v1.CacheService/Lookup", "", "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        ("kvdepot.v1.AdminService/GetStatus", "blue", "PERMISSION_DENIED", "ADMIN_ONLY"),
    ]
    assert all(each["peer"].startswith("ipv4:127.0.0.1:") and each["event"] == "CallDenied" for each in lines)
    for tenant, reason in (("", "CREDENTIALS_MISSING"), ("blue", "ADMIN_ONLY")):
        event = (await watching.read()).event
        assert (event.tenant, event.attributes["reason"], event.attributes["peer"]) == (
            tenant,
            reason,
            "ipv4:127.0.0.1",
        )
    watching.cancel()
    assert server._access.audit.num_denied == {("", "CREDENTIALS_MISSING"): 1, ("blue", "ADMIN_ONLY"): 1}


def test_the_reasons_of_the_metric_are_those_of_the_errors() -> None:
    classes = [each for each in vars(service.errors).values() if isinstance(each, type)]
    errors = [each for each in classes if issubclass(each, service.errors.DepotError)]
    denials = {each.reason for each in errors if getattr(each, "status", None) in DENIALS}
    assert set(attributes.DENIED_REASON.values) == denials | {"REGION_FORBIDDEN"}


async def test_a_burst_of_denied_calls_is_counted_and_logged_in_few_lines(
    start_tenants: StartTenants, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_tenants()
    for number in range(30):
        await refusal(connect(server.addresses[0], f"guess {number}"), "Lookup")
    assert len(audited(caplog)) == 10
    assert server._access.audit.num_denied["", "TOKEN_UNKNOWN"] == 30


async def test_no_token_is_ever_logged(
    start_tenants: StartTenants, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start_tenants()
    await refusal(connect(server.addresses[0], "a-guess-that-may-be-right-elsewhere"), "Lookup")
    await connect(server.addresses[0], "blue-token")("ListSessions", observability_pb2.ListSessionsRequest())
    await eventually(lambda: server.bus.stats().depth == 0)
    assert "a-guess" not in caplog.text
    assert "blue-token" not in caplog.text


@pytest.mark.parametrize("rpc", ["ClearCache", "SetLogLevel"])
async def test_what_an_admin_changes_is_logged(
    start_tenants: StartTenants, connect: Connect, caplog: pytest.LogCaptureFixture, rpc: str
) -> None:
    caplog.set_level(logging.INFO)
    server = await start_tenants(OPS)
    await connect(server.addresses[0], "ops-token")(rpc, empty_request(rpc))
    (line,) = audited(caplog)
    assert (line["event"], line["rpc"], line["tenant"]) == ("AdminActed", f"kvdepot.v1.AdminService/{rpc}", "ops")

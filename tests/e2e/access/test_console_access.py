"""With tenants the console asks for a token, and shows each tenant its own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from service.load_settings import BadSettings
from tests.e2e.access.conftest import Connect, StartTenants
from tests.e2e.console import ask, asked, free_port, report_session, request
from tests.e2e.servers import StartServer
from tests.fakes.authority import Authority
from tests.fakes.waiting import eventually


@pytest.fixture(autouse=True)
def _answers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.console.app.FRESH_SECONDS", 0.0)


async def test_a_caller_without_a_valid_token_learns_nothing(start_tenants: StartTenants) -> None:
    server = await start_tenants(console_port=free_port())
    for question in ("who", "activity", "status", "sessions", "session", "l1", "sizing", "events"):
        for token, reason in (("", "CREDENTIALS_MISSING"), ("wrong", "TOKEN_UNKNOWN")):
            answer = await asked(server, f"/api/{question}", token=token)
            assert (answer.status, answer.json["reason"]) == (401, reason), question
    assert (await asked(server, "/")).status == 200, "the page itself asks for the token"
    await eventually(lambda: server._access.audit.num_denied["", "TOKEN_UNKNOWN"] == 8)


async def test_a_tenant_sees_its_own_alone(start_tenants: StartTenants, connect: Connect) -> None:
    server = await start_tenants(console_port=free_port())
    red, blue, ops = "red-token", "blue-token", "ops-token"
    for token in (red, blue, ops):
        await ask(server, "events", token=token)  # from here on
    for token in (red, blue):
        await report_session(connect(server.addresses[0], token), f"of {token}")
    assert await ask(server, "who", token=red) == {
        "version": (await ask(server, "who", token=ops))["version"],
        "tenant": "red",
        "is_admin": False,
    }
    for token, expected in (
        (red, {"of red-token"}),
        (blue, {"of blue-token"}),
        (ops, {"of red-token", "of blue-token"}),
    ):
        sessions = (await ask(server, "sessions", token=token))["sessions"]
        assert {each["session_id"] for each in sessions} == expected
        events = (await ask(server, "events", token=token))["events"]
        assert {event["session_id"] for event in events if event["type"] == "SessionStarted"} == expected
        started = [event["number"] for event in events]
        assert started == list(range(1, len(events) + 1)), "numbers tell nothing of others' events"
    assert (await ask(server, "l1", token=red))["capacity_bytes"] == 0
    assert {each["session_id"] for each in (await ask(server, "sessions", token=ops, tenant="red"))["sessions"]} == {
        "of red-token"
    }
    for path, reason in (
        ("/api/status", "ADMIN_ONLY"),
        ("/api/sizing", "ADMIN_ONLY"),
        ("/api/sizing?tenant=red", "ADMIN_ONLY"),
        ("/api/sessions?tenant=blue", "OTHER_TENANT"),
        ("/api/session?tenant=blue&instance_id=i&session_id=of+blue-token", "OTHER_TENANT"),
        ("/api/activity?tenant=blue", "OTHER_TENANT"),
        ("/api/l1?tenant=blue", "OTHER_TENANT"),
        ("/api/events?tenant=blue", "OTHER_TENANT"),
    ):
        answer = await asked(server, path, token=red)
        assert (answer.status, answer.json["reason"]) == (403, reason), path
    answer = await asked(server, "/api/session?instance_id=i&session_id=of+blue-token", token=red)
    assert answer.status == 404


async def test_an_answer_for_one_tenant_is_not_given_to_another(
    start_tenants: StartTenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.console.app.FRESH_SECONDS", 60.0)
    server = await start_tenants(console_port=free_port())
    tenants = [(await ask(server, "who", token=f"{name}-token"))["tenant"] for name in ("red", "blue", "ops")]
    assert tenants == ["red", "blue", "ops"]


async def test_tokens_never_go_over_plain_tcp_to_other_machines(start_tenants: StartTenants) -> None:
    with pytest.raises(BadSettings, match=r"^console_host: .*tls_cert"):
        await start_tenants(console_port=free_port(), console_host="0.0.0.0")


async def test_without_tenants_it_may_be_open_to_other_machines_and_warns(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(console_port=free_port(), console_host="0.0.0.0")
    assert (await asked(server, "/api/who", host="any.example")).status == 200
    assert "NO AUTHENTICATION of the console" in caplog.text


async def test_with_tls_it_shows_the_depots_certificate_also_after_a_change(
    start_tenants: StartTenants, tmp_path: Path, authority: Authority
) -> None:
    cert, key = authority.issue().write(tmp_path, "depot")
    server = await start_tenants(console_port=free_port(), console_host="0.0.0.0", tls_cert=cert, tls_key=key)
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    url = server.console.url.replace("0.0.0.0", "127.0.0.1")
    assert url.startswith("https://")

    async def answer(token: str) -> Any:
        return await asyncio.to_thread(request, url, "/api/who", token=token, tls=trusting)

    assert (await answer("red-token")).json["tenant"] == "red"

    def serial() -> str:
        with (
            socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))) as plain,
            trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return str((secure.getpeercert() or {})["serialNumber"])

    before = await asyncio.to_thread(serial)
    authority.issue().write(tmp_path, "depot")

    async def has_changed() -> bool:
        return await asyncio.to_thread(serial) != before

    await eventually(has_changed)
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(request, url, "/", tls=ssl.create_default_context())

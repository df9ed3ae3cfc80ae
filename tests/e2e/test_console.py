"""The console over HTTP: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.console import asking
from service.server import Server
from tests.e2e.conftest import Open
from tests.e2e.console import Answer, ask, asked, free_port, request
from tests.e2e.engines import Site, prompt
from tests.fakes.waiting import eventually

TOKENS = prompt(64)


@pytest.fixture(autouse=True)
def _answers_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.console.app.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("service.console.app.CONTENTS_SECONDS", 0.0)


@pytest.fixture
async def site(open_site: Open) -> Site:
    return await open_site(console_port=free_port())


async def test_there_is_no_console_unless_a_port_is_set(server: Server) -> None:
    assert server.console is None


async def test_the_page_and_its_files_are_served_with_a_strict_policy(site: Site) -> None:
    page = await asked(site.server, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for path, kind in (("/static/app.js", "text/javascript"), ("/static/style.css", "text/css")):
        answer = await asked(site.server, path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
    for markup in (b"http://", b"https://", b"<script>", b"style=", b"onclick"):
        assert markup not in page.body, "the page needs nothing from elsewhere, and nothing inline"


@pytest.mark.parametrize(
    "path", ["/static/nothing.js", "/static/../app.py", "/static/%2e%2e%2fapp.py", "/api/nothing", "/metrics", "//"]
)
async def test_what_is_not_there_is_not_found(site: Site, path: str) -> None:
    answer = await asked(site.server, path)
    assert (answer.status, answer.json["reason"]) == (404, "NOT_FOUND")
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_it_only_reads(site: Site, method: str) -> None:
    for path in ("/", "/static/app.js", "/api/status", "/api/l1"):
        answer = await asked(site.server, path, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    head = await asked(site.server, "/api/who", method="HEAD")
    assert (head.status, head.body) == (200, b"")


async def test_it_answers_what_the_depot_did_and_has(site: Site) -> None:
    first = await ask(site.server, "events")
    assert first == {"events": [], "last": 0, "num_lost": 0}
    engine = await site.attach(world_size=2)
    instance_id = engine.attachment.instance_id
    await engine.store("s", TOKENS, engine.kv(64, seed=1))
    await engine.lookup("s", TOKENS)

    async def is_counted() -> bool:
        buckets = (await ask(site.server, "activity"))["buckets"]
        counts = [each["num_operations"] for bucket in buckets for each in bucket["operations"].values()]
        return bool(sum(counts) == 2)

    await eventually(is_counted)
    activity = await ask(site.server, "activity")
    assert sum(bucket["totals"].get("stored_tokens", 0) for bucket in activity["buckets"]) == 64
    assert {"rank missing": 64} in [bucket["missed"] for bucket in activity["buckets"]]
    assert [each["session_id"] for each in activity["busiest"]] == ["s"]
    newest = activity["buckets"][-1]["start"]
    later = await ask(site.server, "activity", after=newest)
    assert all(bucket["start"] > newest for bucket in later["buckets"])

    status = await ask(site.server, "status")
    assert status["status"]["state"] == "SERVER_STATE_SERVING"
    assert [each["instance_id"] for each in status["instances"]] == [instance_id]
    (session,) = (await ask(site.server, "sessions"))["sessions"]
    assert session["session_id"] == "s"
    shown = (await ask(site.server, "session", instance_id=instance_id, session_id="s"))["session"]
    assert [each["kind"] for each in shown["operations"]] == ["OPERATION_KIND_STORE", "OPERATION_KIND_LOOKUP"]
    l1 = await ask(site.server, "l1")
    (holding,) = l1["holdings"]
    assert (holding["model_name"], holding["num_chunks"], holding["ranks"]) == ("model", 4, 1)
    assert holding["num_bytes"] == sum(holding["bytes_by_age"]) == l1["used_bytes"] == 4 * 4_096
    assert l1["capacity_bytes"] == 16 << 20

    events = await ask(site.server, "events", after=0)
    types = [event["type"] for event in events["events"]]
    assert {"InstanceAttached", "StoreFinished", "LookupFinished", "TransferFinished"} <= set(types)
    (finished,) = [event for event in events["events"] if event["type"] == "StoreFinished"]
    assert (finished["session_id"], finished["fields"]["stored_tokens"]) == ("s", 64)
    assert (await ask(site.server, "events", after=events["last"]))["events"] == []


@pytest.mark.parametrize(
    ("question", "status", "reason"),
    [
        ("activity?resolution=7", 400, "INVALID_REQUEST"),
        ("activity?resolution=second", 400, "INVALID_REQUEST"),
        ("activity?after=nan", 400, "INVALID_REQUEST"),
        ("activity?after=inf", 400, "INVALID_REQUEST"),
        ("events?after=x", 400, "INVALID_REQUEST"),
        ("events?after=1e300", 400, "INVALID_REQUEST"),
        ("sessions?page_token=%00", 400, "INVALID_REQUEST"),
        ("sessions?instance_id=" + "x" * 2_000, 400, "INVALID_REQUEST"),
        ("session", 400, "INVALID_REQUEST"),
        ("session?instance_id=i&session_id=s", 404, "SESSION_NOT_FOUND"),
        ("session?instance_id=i&session_id=%ff", 404, "SESSION_NOT_FOUND"),
        ("session?instance_id=i&session_id=s&tenant=red", 404, "SESSION_NOT_FOUND"),
    ],
)
async def test_a_bad_question_is_refused_with_its_reason(site: Site, question: str, status: int, reason: str) -> None:
    answer = await asked(site.server, f"/api/{question}")
    assert (answer.status, answer.json["reason"]) == (status, reason)
    assert answer.json["message"]


async def test_without_a_history_only_the_activity_is_missing(open_site: Open) -> None:
    site = await open_site(console_port=free_port(), disable_observability=True)
    for question in ("activity", "events"):
        answer = await asked(site.server, f"/api/{question}")
        assert (answer.status, answer.json["reason"]) == (409, "OBSERVABILITY_DISABLED")
    assert (await ask(site.server, "l1"))["holdings"] == []


# Other sites


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", "10.0.0.1"])
async def test_a_name_that_points_to_this_machine_is_refused(site: Site, host: str) -> None:
    answer = await asked(site.server, "/api/who", host=host)
    assert (answer.status, answer.json["reason"]) == (421, "OTHER_HOST")
    assert (await asked(site.server, "/", host=host)).status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:80", "127.9.9.9", "[::1]:80"])
async def test_this_machines_own_names_are_answered(site: Site, host: str) -> None:
    assert (await asked(site.server, "/api/who", host=host)).status == 200


async def test_a_page_of_another_site_reads_nothing(site: Site) -> None:
    for kind in ("cross-site", "same-site"):
        answer = await asked(site.server, "/api/who", sec_fetch_site=kind, origin="http://evil.example")
        assert (answer.status, answer.json["reason"]) == (403, "OTHER_SITE")
    answer = await asked(site.server, "/api/who", sec_fetch_site="same-origin", origin="http://evil.example")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


# Load


async def test_a_depot_that_is_too_busy_is_not_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT_SECONDS", 0.2)
    assert site.server.console is not None
    answer: Answer = request(site.server.console.url, "/api/status")  # blocks the depot's event loop
    assert (answer.status, answer.json["reason"]) == (503, "DEPOT_BUSY")
    assert (await asked(site.server, "/api/status")).status == 200


async def test_many_pages_cost_the_depot_as_much_as_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.console.app.CONTENTS_SECONDS", 60.0)
    calls: list[str] = []
    pool = type(site.depot.slices)
    run = pool.run

    def counted(self: Any, steps: Any) -> Any:
        calls.append("looked at L1")
        return run(self, steps)

    monkeypatch.setattr(pool, "run", counted)
    answers = await asyncio.gather(*(asked(site.server, "/api/l1") for _ in range(40)))
    assert {answer.status for answer in answers} == {200}
    assert len(calls) == 1

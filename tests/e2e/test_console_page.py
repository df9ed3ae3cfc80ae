"""The console in a real browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from service.l1.eviction.policy_name import PolicyName
from service.server import Server
from tests.e2e.access.calling import Calling, write_tenants
from tests.e2e.chromium import Browser, Page, chromium, needs_chromium
from tests.e2e.conftest import Open
from tests.e2e.console import ask, free_port, report_session
from tests.e2e.engines import Site, prompt
from tests.e2e.servers import running_server
from tests.fakes.curves import FakeCurves, curve
from tests.fakes.shown_tier import disk_and_valkey
from tests.fakes.waiting import eventually

pytestmark = needs_chromium

TOKENS = prompt(64)
L1_BYTES = 16 << 20
HOSTILE = "<img src=x onerror=hacked=1><script>hacked=1</script>&lt;b&gt;"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A tab. At the end it has had no error, and has asked nobody but the depot."""
    opened = await browser.page()
    yield opened
    assert opened.problems == []
    assert {urlsplit(url).hostname for url in opened.requested} <= {"127.0.0.1"}


@pytest.fixture
async def site(open_site: Open) -> Site:
    return await open_site(console_port=free_port())


async def open_console(page: Page, server: Server, view: str = "") -> None:
    assert server.console is not None
    await page.open(server.console.url + (f"#{view}" if view else ""))


async def work(site: Site, session_id: str = "request-1") -> None:
    """Attach one of two ranks, and all of another instance, which stores, looks up and retrieves."""
    await site.attach(instance_id="half", model_name="llama", world_size=2)
    engine = await site.attach(instance_id="whole", model_name="qwen")
    kv = engine.kv(64, seed=1)
    await engine.store(session_id, TOKENS, kv)
    found = await engine.lookup(session_id, [*TOKENS, *prompt(32, seed=2)])
    await engine.retrieve_exactly(session_id, found.lease, kv)


async def test_the_overview_shows_what_the_depot_does(page: Page, site: Site) -> None:
    await open_console(page, site.server)
    await work(site)
    await page.shows("66.7 %", "64", "ranks missing", "serving", "1 of 2", "half", "request-1", "64 of 96")
    assert await page.evaluate("document.querySelectorAll('section.chart svg path').length") >= 10
    box = json.loads(
        await page.evaluate("JSON.stringify(document.querySelector('section.chart svg').getBoundingClientRect())")
    )

    async def shows_values() -> bool:
        await page.move(box["right"] - 12, box["top"] + 40)
        return "hit" in str(await page.evaluate("document.getElementById('tip').innerText"))

    await eventually(shows_values)
    await page.click("button", "1 hour")
    await page.shows("Hit ratio")
    assert "unsafe" not in str(await page.evaluate("document.documentElement.outerHTML"))


async def test_the_page_says_what_the_depot_adopted_at_its_start(page: Page, site: Site) -> None:
    site.server.depots.num_adopted_chunks_by_tenant = {"": 12, "red": 30}
    await open_console(page, site.server)
    await page.shows("serving, up", "adopted 42 chunks at its start")


async def test_a_busy_session_opens_as_a_timeline_that_zooms(page: Page, site: Site) -> None:
    await open_console(page, site.server)
    await work(site)
    await page.click("tr.link", "request-1")
    await page.shows("request-1 of whole", "3 operations", "scheduler", "rank 0", "the last miss", "64 of 96")

    async def operation() -> dict[str, float]:
        return dict(
            json.loads(
                await page.evaluate(
                    "JSON.stringify([...document.querySelectorAll('svg .operation')].at(-1).getBoundingClientRect())"
                )
            )
        )

    # Any wider than the smallest bar, after a few turns of the wheel at its place
    before = await operation()
    middle = before["x"] + before["width"] / 2, before["y"] + before["height"] / 2
    await page.move(*middle)
    await eventually(lambda: _tip_shows(page, "tokens"))
    for _ in range(12):
        await page.wheel(*middle, -120)

    async def is_zoomed() -> bool:
        return (await operation())["width"] > 2 * before["width"]

    await eventually(is_zoomed)
    await page.click("button", "all")

    async def is_whole() -> bool:
        return abs((await operation())["width"] - before["width"]) < before["width"]

    await eventually(is_whole)


async def _tip_shows(page: Page, text: str) -> bool:
    return text in str(await page.evaluate("document.getElementById('tip').innerText"))


async def test_names_from_clients_stay_text_in_every_view(page: Page, site: Site) -> None:
    await open_console(page, site.server, "events")
    await page.shows("no event since this view was opened")
    engine = await site.attach(instance_id=HOSTILE, model_name=HOSTILE)
    await engine.store(HOSTILE, TOKENS, engine.kv(64, seed=1))
    await page.shows("StoreFinished", HOSTILE)
    for view in ("Overview", "Sessions", "L1"):
        await page.click("nav button", view)
        await page.shows(HOSTILE)
    await page.click("nav button", "Sessions")
    await page.click("tr.link", HOSTILE)
    await page.shows(f"{HOSTILE} of {HOSTILE}")
    assert await page.evaluate("typeof hacked") == "undefined"
    assert await page.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0


async def test_l1_shows_which_models_fill_it(page: Page, site: Site) -> None:
    await work(site)
    await open_console(page, site.server, "l1")
    await page.shows("L1 by model", "qwen", "16 KiB of 16 MiB", "used in the last 10 s")


async def test_sizing_shows_the_curve_with_its_error_and_what_to_do(page: Page, site: Site) -> None:
    site.server.depots.index.num_evicted = 1
    present = {PolicyName.LRU2: 0.29, PolicyName.LFU: 0.2}
    source = site.server.sizing.source = FakeCurves(
        curve(l1_bytes=L1_BYTES, present=present, tier=0.35, share=0.7),
        curve(l1_bytes=L1_BYTES, present=present, tier=0.35, share=0.3, model_name=HOSTILE),
    )
    await open_console(page, site.server, "sizing")
    await page.shows("+48 MiB of L1 would have hit", "46.0 % instead of 35.0 %", "chosen by auto")
    await page.shows("32 MiB\t2x\t40.0 %\t0.3 %", "16 MiB, now", "176 MiB: L1 with disk", "learned, in use", HOSTILE)
    lines, bands, squares, circles = json.loads(
        await page.evaluate(
            "JSON.stringify(['.line', '.band', 'rect', 'circle']"
            ".map((each) => document.querySelectorAll(`svg ${each}`).length))"
        )
    )
    assert (lines, bands, squares, circles) == (2, 2, 1, 12)
    at = json.loads(
        await page.evaluate("JSON.stringify(document.querySelectorAll('svg circle')[3].getBoundingClientRect())")
    )
    await page.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    await eventually(lambda: _tip_shows(page, "40.0 % ± 0.3 %"))
    assert set(source.windows) == {3_600.0}
    await page.click("button", "1 day")

    async def asks_for_a_day() -> bool:
        return 86_400.0 in source.windows

    await eventually(asks_for_a_day)


async def test_sizing_says_that_it_is_too_early_and_draws_nothing(page: Page, site: Site) -> None:
    site.server.sizing.source = FakeCurves(curve(l1_bytes=L1_BYTES, share=0.001))
    await open_console(page, site.server, "sizing")
    await page.shows("It is too early", "needs 1,000 for an estimate")
    shown = await page.text()
    assert "would have hit" not in shown
    assert "By size" not in shown


async def test_a_tier_that_fails_is_red_and_says_why(page: Page, open_site: Open) -> None:
    site = await open_site(console_port=free_port(), open_tiers=disk_and_valkey)
    await page.resize(390, 800)
    await open_console(page, site.server)
    await page.shows("tiers not used", "91 GiB", "45.7 k", "2.31 GB/s", "3 chunks damaged", "120 writes dropped")
    bad = "[...document.querySelectorAll('td .bad')].map((each) => each.textContent).join()"
    assert await page.evaluate(bad) == "failing, tried again in 8 s: 10.0.0.7:6379: connection refused"
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_a_depot_without_tiers_behind_l1_shows_nothing_of_them(page: Page, site: Site) -> None:
    await open_console(page, site.server)
    await page.shows("Busiest sessions", "Hit ratio")
    assert "Tiers" not in await page.text()


async def test_events_are_filtered_and_paused(page: Page, site: Site) -> None:
    await open_console(page, site.server, "events")
    await page.shows("no event since")
    await work(site)
    await page.shows("StoreFinished", "LookupFinished", "RetrieveFinished")
    await page.type("input[type=search]", "lookupfin")
    await page.shows("LookupFinished", "matched_tokens=64")
    assert "StoreFinished\t" not in await page.text()
    await page.type("input[type=search]", "request-2")
    await page.shows("no event since this view was opened fits")
    await page.click("button", "pause")
    await page.evaluate("fetch('/api/who').then((answer) => answer.json())")  # after the answer that is on its way
    await site.client.lookup("whole", "request-2", TOKENS)

    async def is_kept() -> bool:
        return "request-2" in json.dumps(await ask(site.server, "events", after=0))

    await eventually(is_kept)
    await page.evaluate("fetch('/api/who').then((answer) => answer.json())")
    assert "request-2" not in await page.text()
    await page.click("button", "go on")
    await page.shows("LookupStarted", "request-2")


async def test_a_depot_that_restarts_is_noticed(page: Page) -> None:
    port = free_port()
    async with running_server({"chunk_size": 16, "console_port": port}) as server:
        await open_console(page, server)
        await page.shows("Hit ratio", "serving")
    await page.shows("No answer since", "the depot does not answer")
    async with running_server({"chunk_size": 16, "console_port": port}):

        async def is_back() -> bool:
            return bool(await page.evaluate("document.getElementById('notice').hidden"))

        await eventually(is_back)


async def test_a_tenant_logs_in_with_its_token(page: Page, tmp_path: Path) -> None:
    tenants = write_tenants(
        tmp_path / "tenants.json", *({"name": name, "token": f"{name}-token"} for name in ("red", "blue"))
    )
    async with running_server({"tenants": tenants, "console_port": free_port()}) as server:
        await open_console(page, server, "sessions")
        await page.shows("Bearer token")
        await page.type("#token", "wrong")
        await page.click("#login button")
        await page.shows("the bearer token is no tenant's")
        await page.type("#token", "red-token")
        await page.click("#login button")
        await page.shows("tenant red", "Sessions, the newest first")
        assert "Sizing" not in await page.text(), "it is for admins"
        assert await page.evaluate("Object.values(sessionStorage).join()") == "red-token"
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        assert not [url for url in page.requested if "token" in url.replace("page_token", "")]
        await page.click("button", "log out")
        await page.shows("Bearer token")
        assert await page.evaluate("sessionStorage.length") == 0


async def test_it_is_dark_where_a_person_prefers_that(page: Page, site: Site) -> None:
    await open_console(page, site.server)
    await page.shows("Hit ratio")
    colours = []
    for dark in (False, True):
        await page.resize(1280, 900, dark=dark)
        colours.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(246, 247, 249)", "rgb(18, 22, 28)"]


async def test_an_admin_chooses_a_tenant(page: Page, tmp_path: Path) -> None:
    names = ("red", "blue", "ops")
    tenants = write_tenants(
        tmp_path / "tenants.json",
        *({"name": name, "token": f"{name}-token", "admin": name == "ops"} for name in names),
    )
    async with running_server({"tenants": tenants, "console_port": free_port()}) as server:
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            for name in ("red", "blue"):
                await report_session(Calling(channel, f"{name}-token"), f"session-of-{name}")
        await open_console(page, server, "sessions")
        await page.shows("Bearer token")
        await page.type("#token", "ops-token")
        await page.click("#login button")
        await page.shows("session-of-red", "session-of-blue", "red/i")
        await page.evaluate(
            "(() => { const field = document.getElementById('tenant'); field.value = 'red';"
            " field.dispatchEvent(new Event('change')); })()"
        )

        async def shows_red_alone() -> bool:
            text = await page.text()
            return "session-of-red" in text and "session-of-blue" not in text

        await eventually(shows_red_alone)


@pytest.mark.parametrize("view", ["overview", "sessions", "l1", "sizing", "events"])
async def test_a_narrow_window_is_not_scrolled_sideways(page: Page, site: Site, view: str) -> None:
    await work(site)
    site.server.sizing.source = FakeCurves(curve(l1_bytes=L1_BYTES), curve(l1_bytes=L1_BYTES, model_name="qwen"))
    await page.resize(390, 800)
    await open_console(page, site.server, view)
    shown = {"overview": "hit ratio", "sessions": "newest first", "l1": "qwen", "sizing": "gain per MiB"}
    await page.shows("kvdepot", shown.get(view, "events"))
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390

"""The pages over HTTP: health that does not need the event loop, metrics in each format, and bounds for clients."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from service.http import connection, vitals
from service.http.server import HttpServer
from service.http.vitals import Phase, Vitals
from service.server import CannotListen, Server
from tests.e2e.scraping import Page, measured
from tests.e2e.servers import StartServer, running_server
from tests.fakes.clock import Clock
from tests.fakes.waiting import eventually

LINE = "text/plain; charset=utf-8"


class Answer:
    """What a page answered."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()
        self.text = self.body.decode(errors="replace")


def ask(address: str, path: str, method: str = "GET", **headers: str) -> Answer:
    with closing(http.client.HTTPConnection(address, timeout=20)) as asking:
        asking.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return Answer(asking.getresponse())


async def asked(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    assert server.http_address is not None
    return await asyncio.to_thread(ask, server.http_address, path, method, **headers)


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    started: Server = await start_server(**measured())
    return started


# Health


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_depot_that_serves_is_healthy_and_ready(server: Server, path: str) -> None:
    answer = await asked(server, path)
    assert (answer.status, answer.text, answer.headers["content-type"]) == (200, "ok\n", LINE)
    assert answer.headers["cache-control"] == "no-store"


async def test_a_depot_is_not_ready_before_it_serves_and_while_it_drains() -> None:
    answers = []
    async with running_server(measured()) as server:
        await asked(server, "/readyz")
        state = server._vitals
        for phase in (Phase.STARTING, Phase.DRAINING):
            state.phase = phase
            answers += [await asked(server, "/readyz"), await asked(server, "/healthz")]
    assert [(each.status, each.text.partition(":")[0].strip()) for each in answers] == [
        (503, "starting"),
        (200, "ok"),
        (503, "draining"),
        (200, "ok"),
    ]


async def test_a_drain_is_told_while_calls_still_run(start_server: StartServer) -> None:
    async with running_server(measured(drain_timeout="5s")) as server:
        server._admission.begin(server.depot.quota)
        drain = asyncio.create_task(server._drain())
        await eventually(lambda: server._admission.is_draining)
        during = await asked(server, "/readyz")
        server._admission.end(server.depot.quota)
        await drain
    assert (during.status, during.text.partition(":")[0]) == (503, "draining")


async def test_health_answers_while_the_event_loop_hangs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.http_address is not None
    monkeypatch.setattr(vitals, "ALIVE_SECONDS", 0.2)
    asking = asyncio.get_running_loop().run_in_executor(None, ask_when_hung, server.http_address)
    time.sleep(1.2)  # noqa: ASYNC251 - the depot's loop hangs
    healthy, ready, took_seconds = await asking
    assert healthy.status == ready.status == 503
    assert healthy.text.startswith("the event loop has not run for ")
    assert took_seconds < 0.5, "the answer waited for the loop"


def ask_when_hung(address: str) -> tuple[Answer, Answer, float]:
    time.sleep(0.5)
    start = time.monotonic()
    return ask(address, "/healthz"), ask(address, "/readyz"), time.monotonic() - start


async def test_the_loop_counts_as_hung_only_after_a_while() -> None:
    clock = Clock()
    state = Vitals(clock)
    try:
        state.phase = Phase.SERVING
        clock.advance(vitals.ALIVE_SECONDS)
        assert (state.why_not_alive(), state.why_not_ready()) == ("", "")
        clock.advance(0.1)
        assert state.why_not_alive() == state.why_not_ready() == "the event loop has not run for 10.1 s"
    finally:
        state.stop()


async def test_health_without_metrics_is_served_if_it_is_asked_for(start_server: StartServer) -> None:
    without = await start_server(prometheus_port=0)
    assert without.http_address is None
    server = await start_server(prometheus_port=0, health_without_metrics=True)
    assert server.prometheus_address is None
    assert (await asked(server, "/healthz")).status == 200
    metrics = await asked(server, "/metrics")
    assert (metrics.status, "no metrics here" in metrics.text) == (404, True)


# Pages


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "/%00", "//"])
async def test_elsewhere_one_line_names_what_there_is(server: Server, path: str) -> None:
    answer = await asked(server, path)
    assert (answer.status, answer.headers["content-type"]) == (404, LINE)
    assert answer.text == "nothing is here: kvdepot serves /metrics, /healthz and /readyz\n"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_head_has_the_length_and_no_body_and_a_post_is_refused(server: Server, path: str) -> None:
    head = await asked(server, path, "HEAD")
    assert (head.status, head.body, int(head.headers["content-length"]) > 0) == (200, b"", True)
    post = await asked(server, path, "POST")
    assert (post.status, post.headers["allow"], post.text) == (405, "GET, HEAD", "GET and HEAD are allowed\n")


async def test_no_header_names_the_software(server: Server) -> None:
    assert "server" not in (await asked(server, "/healthz")).headers


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF\n"),
    ],
)
async def test_metrics_come_in_the_format_that_is_asked_for(
    server: Server, accept: str, content_type: str, end: str
) -> None:
    plain = await asked(server, "/metrics", accept=accept)
    packed = await asked(server, "/metrics", accept=accept, accept_encoding="gzip, deflate")
    assert plain.headers["content-type"].startswith(content_type)
    assert plain.headers.get("content-encoding") is None
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 3
    for text in (plain.text, gzip.decompress(packed.body).decode()):
        assert text.endswith(end)
        assert "kvdepot_l1_capacity_bytes" in text
    if not end:
        assert Page(plain.text).value("kvdepot_l1_capacity_bytes") == 16 << 20


# Clients


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        yield client


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1 << 16) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"POST / HTTP/1.1\r\nHost: a\r\n"]
)
async def test_a_client_that_does_not_finish_its_request_is_cut(
    server: Server, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "CLIENT_SECONDS", 0.1)
    assert server.http_address is not None
    with connected(server.http_address) as client:
        client.sendall(sent)
        assert await asyncio.to_thread(is_closed, client)


async def test_more_connections_than_the_limit_are_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
    assert server.http_address is not None
    with connected(server.http_address) as first, connected(server.http_address) as second:
        assert await asyncio.to_thread(is_closed, second)
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await asyncio.to_thread(first.recv, 100)).startswith(b"HTTP/1.1 200")


async def test_no_request_is_an_error_of_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    assert server.http_address is not None
    with connected(server.http_address) as client:
        client.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 400")
    with connected(server.http_address) as client:
        client.sendall(b"GET /" + b"a" * (64 << 10))
        assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 400")
    assert (await asked(server, "/healthz")).status == 200
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


# The server of an app


async def _endless(request: Request) -> StreamingResponse:
    async def lines() -> object:
        while True:
            yield b"x" * 65_536
            await asyncio.sleep(0)

    return StreamingResponse(lines())  # type: ignore[arg-type]  # an iterator


ENDLESS = Starlette(routes=[Route("/", _endless)])


async def test_a_stream_is_cut_at_the_end_and_leaves_no_thread_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    served = HttpServer("127.0.0.1", 0, purpose="a test")
    served.start(ENDLESS)
    with connected(served.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 200")
        await served.close()
    await eventually(lambda: "http a test" not in {each.name for each in threading.enumerate()})
    assert caplog.text == ""


async def test_a_client_that_takes_nothing_of_an_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CLIENT_SECONDS", 0.1)
    served = HttpServer("127.0.0.1", 0, purpose="a test")
    served.start(ENDLESS)
    try:
        with connected(served.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 200")
            await eventually(lambda: not served.num_connections)
    finally:
        await served.close()


async def test_an_address_that_is_taken_or_of_another_machine_is_refused() -> None:
    first = HttpServer("127.0.0.1", 0, purpose="a test")
    host, port = first.address.split(":")
    for wrong in ((host, int(port)), ("192.0.2.1", 0), ("no.such.host.invalid", 0)):
        with pytest.raises(CannotListen, match=rf"{wrong[0]}:{wrong[1]}, for a test, is taken"):
            HttpServer(*wrong, purpose="a test")
    await first.close()
    again = HttpServer(host, int(port), purpose="a test")
    again.start(ENDLESS)
    await again.close()


async def test_the_address_of_ipv6_is_written_with_brackets() -> None:
    served = HttpServer("::1", 0, purpose="a test")
    assert json.dumps(served.address).startswith('"[::1]:')
    await served.close()

"""The log of `kvdepot serve`: lines that a program can read, with their spans."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from typing import Any

import grpc
import pytest

from kvdepot import DepotClient, requests
from kvdepot.v1.cache_pb2_grpc import CacheServiceStub
from tests.e2e.collector import attributes, running_collector
from tests.e2e.test_server import CHUNK_SIZE, Serve, ServerProcess, attached, serve

__all__ = ["serve"]

TRACE_ID = f"{0xABCD:032x}"
TRACEPARENT = ("traceparent", f"00-{TRACE_ID}-{0xEF:016x}-01")
FORGED = 'x\n{"message": "forged"}'
ALONE = ("--listen", "127.0.0.1:0", "--disable-metrics")
JSON = ("--log-format", "json")
NOWHERE = "http://127.0.0.1:9"  # the port of "discard" has no listener


def use(server: ServerProcess) -> None:
    """Make one lookup in the engine's trace, and end the server."""
    [address] = server.addresses()
    with DepotClient(address) as client, attached(client, FORGED), grpc.insecure_channel(address) as channel:
        request = requests.lookup(FORGED, "chat", range(CHUNK_SIZE), 0, 0.0)
        CacheServiceStub(channel).Lookup(request, metadata=(TRACEPARENT,), timeout=20)
        client.end_session(FORGED, "chat")
    server.send(signal.SIGTERM)
    assert server.exit_code() == 0


def events(server: ServerProcess) -> dict[str, dict[str, Any]]:
    """Return the last line of each message."""
    lines = [json.loads(line) for line in server.said().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    return {line["message"]: line for line in lines}


def test_json_lines_have_the_facts(serve: Serve) -> None:
    server = serve(*ALONE, *JSON)
    use(server)
    said = events(server)
    assert said["LookupFinished"]["miss_reason"] == "unknown identity"
    assert said["LookupFinished"]["instance_id"] == FORGED
    assert "forged" not in said
    assert "trace_id" not in said["LookupFinished"]


async def test_lines_name_the_spans_that_the_collector_has(serve: Serve) -> None:
    async with running_collector() as collector:
        server = serve(*ALONE, *JSON, "--enable-tracing", "--otlp-endpoint", collector.endpoint)
        await asyncio.to_thread(use, server)
    said = events(server)
    lookup, session = collector.one("lookup"), collector.one("session")
    assert said["LookupFinished"]["trace_id"] == lookup.trace_id.hex() == TRACE_ID
    assert said["LookupFinished"]["span_id"] == lookup.span_id.hex()
    assert said["SessionSummary"]["span_id"] == session.span_id.hex()
    assert attributes(session)["kvdepot.instance_id"] == FORGED
    assert "trace_id" not in said["ServerStarted"]


def test_text_lines_are_readable_and_name_the_spans(serve: Serve) -> None:
    server = serve(*ALONE, "--enable-tracing", "--trace-console")
    use(server)
    [line] = [line for line in server.said().splitlines() if " LookupFinished " in line]
    assert re.search(rf"INFO +telemetry\.logs\.subscriber .* trace_id={TRACE_ID} span_id=[0-9a-f]{{16}}$", line)
    assert "\n{" not in server.said()


def test_spans_on_the_console_are_an_object_a_line(serve: Serve) -> None:
    server = serve(*ALONE, "--enable-tracing", "--trace-console")
    use(server)
    assert server.process.stdout is not None
    spans = [json.loads(line) for line in server.process.stdout]
    [lookup] = [span for span in spans if span["name"] == "lookup"]
    assert lookup["context"]["trace_id"] == f"0x{TRACE_ID}"


def test_a_collector_that_is_down_costs_a_warning(serve: Serve) -> None:
    server = serve(*ALONE, *JSON, "--enable-tracing", "--otlp-endpoint", NOWHERE)
    use(server)
    lines = [json.loads(line) for line in server.said().splitlines()]
    complaints = [line for line in lines if line["logger"].startswith("opentelemetry")]
    assert 1 <= len(complaints) <= 10
    assert not any("exception" in line for line in lines)


@pytest.mark.parametrize("flag", ["--enable-tracing", "--trace-console"])
def test_tracing_to_nowhere_refuses_to_start(serve: Serve, flag: str) -> None:
    server = serve(*ALONE, flag)
    assert server.exit_code() == 2
    assert "trace" in server.said()

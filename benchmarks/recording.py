"""What a recording costs a Lookup: a depot that records its requests beside one that does not, in turns.

Each call is a request of its own, so that each gets a line.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np

from benchmarks import servers
from benchmarks.figures import Figure
from benchmarks.lookups import LONG, SHORT, Rounds
from benchmarks.probing import GROUPS
from kvdepot import AsyncDepotClient, requests
from kvdepot.v1 import cache_pb2

ROUNDS = 7

Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


class _Numbered:
    """A method whose calls each name a session of their own."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._sessions: Iterator[int] = itertools.count()

    def __call__(self, request: bytes) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        # Of a field that stands twice in a message, the last one counts.
        session = cache_pb2.LookupRequest(session_id=f"s{next(self._sessions)}").SerializeToString()
        return self._method(request + session)


async def measure() -> list[Figure]:
    """Measure hits and misses, of short and of long prompts."""
    figures: list[Figure] = []
    prompt = np.arange(LONG, dtype=np.uint32)
    other = prompt[::-1].copy()
    with tempfile.TemporaryDirectory() as folder:
        recording = ("--record-trace", str(Path(folder) / "trace.jsonl"))
        for what, tokens in (
            (f"hit, {SHORT:,} tokens", prompt[:SHORT]),
            (f"miss, {SHORT:,} tokens", other[:SHORT]),
            (f"hit, {LONG:,} tokens", prompt),
            (f"miss, {LONG:,} tokens", other),
        ):
            with (
                servers.depot("--l1-size", "64MiB", *recording) as on,
                servers.depot("--l1-size", "64MiB") as off,
            ):
                rounds = {on: Rounds(), off: Rounds()}
                await _measure(rounds, prompt, requests.lookup("bench", "s", tokens, 0, 0.0).SerializeToString())
                figures += _figures(f"Lookup {what}", rounds[on], rounds[off])
    return figures


async def _measure(rounds: dict[servers.Serving, Rounds], stored: np.ndarray, request: bytes) -> None:
    first, second = rounds
    async with (
        AsyncDepotClient(first.unix) as client,
        AsyncDepotClient(second.unix) as other_client,
        await client.attach(instance_id="bench", model_name="tiny", groups=GROUPS) as attachment,
        await other_client.attach(instance_id="bench", model_name="tiny", groups=GROUPS) as other_attachment,
        grpc.aio.insecure_channel(first.unix) as channel,
        grpc.aio.insecure_channel(second.unix) as other_channel,
    ):
        num_bytes = attachment.chunk_bytes * len(stored) // attachment.chunk_size
        for each in (attachment, other_attachment):
            await each.store_inline("stored", stored, bytes(num_bytes))
        lookups = {
            serving: _Numbered(of.unary_unary("/kvdepot.v1.CacheService/Lookup"))
            for serving, of in ((first, channel), (second, other_channel))
        }
        for number in range(ROUNDS):
            for serving in (first, second) if number % 2 else (second, first):
                await rounds[serving].measure(lookups[serving], request, 1, serving)


def _figures(what: str, on: Rounds, off: Rounds) -> list[Figure]:
    def figure(name: str, unit: str, values: list[float], baseline: list[float]) -> Figure:
        return Figure(what=name, unit=unit, values=values, baseline="no recording", baseline_values=baseline)

    return [
        figure(what, "/s", on.rate, off.rate),
        figure("… p50", "ms", on.p50_ms, off.p50_ms),
        figure("… p99", "ms", on.p99_ms, off.p99_ms),
        figure("… CPU of the server, a call", "µs", on.cpu_us, off.cpu_us),
    ]

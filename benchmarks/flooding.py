"""``python -m benchmarks.flooding``: what the calls of one client cost another client, in one run.

Blue looks up one prompt after the other. Red floods: `NUM_FLOODING` calls under way at any time, each followed by the
next at once. Each round measures blue alone, while red floods another depot, and while red floods blue's depot. The
second figure shows the load of red's processes on the machine, the third one also their effect through the depot.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, Credentials, KvShape
from kvdepot.cli.processes import child, server_process
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2

NUM_FLOODING = 64
ROUNDS = 5
SECONDS = 2.0
TOKENS = 4_096
WRONG = "wrong"
TINY = KvShape(num_layers=1, num_blocks=1, block_size=16, num_heads=1, head_size=1, dtype="uint8")
Lookup = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Metadata = tuple[tuple[str, str], ...]


class Caller:
    """Looks up a prompt that it has stored."""

    def __init__(self, lookup: Lookup, instance_id: str, token: str) -> None:
        request = cache_pb2.LookupRequest(instance_id=instance_id, session_id="s")
        request.prefix.token_ids.extend(range(TOKENS))
        self._request = request.SerializeToString()
        self._lookup = lookup
        self._metadata: Metadata | None = (("authorization", f"Bearer {token}"),) if token else None

    @classmethod
    @asynccontextmanager
    async def attached(cls, address: str, instance_id: str, token: str) -> AsyncIterator[Caller]:
        """Attach while the block runs, unless the token is wrong."""
        credentials = Credentials(token=token) if token else None
        groups = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(TINY)]
        async with (
            AsyncDepotClient(address, credentials=credentials) as client,
            grpc.aio.insecure_channel(address) as channel,
        ):
            caller = cls(channel.unary_unary("/kvdepot.v1.CacheService/Lookup"), instance_id, token)
            if token == WRONG:
                yield caller
                return
            async with await client.attach(instance_id=instance_id, model_name="m", groups=groups) as attachment:
                num_bytes = attachment.chunk_bytes * (TOKENS // attachment.chunk_size)
                await attachment.store_inline("s", np.arange(TOKENS, dtype=np.uint32), bytes(num_bytes))
                yield caller

    async def call(self) -> None:
        """Make one lookup.

        Raises: AioRpcError.
        """
        await self._lookup(self._request, metadata=self._metadata)

    async def percentiles(self) -> tuple[float, float]:
        """Measure p50 and p99 in ms of lookups, one after the other."""
        latencies: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() < begin + SECONDS:
            latencies.append(await seconds_of(self.call()))
        cuts = statistics.quantiles(latencies, n=100)
        return cuts[49] * 1e3, cuts[98] * 1e3


async def flood(address: str, token: str) -> None:
    """Call for ever, also when the calls are refused."""

    async def call_on(caller: Caller) -> None:
        while True:
            await asyncio.gather(caller.call(), return_exceptions=True)

    async with Caller.attached(address, "red", token) as red, asyncio.TaskGroup() as calls:
        for _ in range(NUM_FLOODING):
            calls.create_task(call_on(red))
        print("ready", flush=True)


@contextmanager
def flooded(address: str, token: str) -> Iterator[None]:
    """Run a process that floods while the block runs."""
    with child("the flood", "-m", "benchmarks.flooding", address, token) as process:
        next(process.lines())
        process.drain()
        yield


async def measure(depot: str, elsewhere: str, tokens: tuple[str, str]) -> Sequence[tuple[float, float]]:
    """Measure blue's p50 and p99 in ms: alone, and during floods of another and of its depot; medians of rounds."""
    red, blue = tokens
    cases: Sequence[Callable[[], AbstractContextManager[None]]] = (
        nullcontext,
        lambda: flooded(elsewhere, red),
        lambda: flooded(depot, red),
    )
    found: list[list[tuple[float, float]]] = [[] for _ in cases]
    async with Caller.attached(depot, "blue", blue) as caller:
        await caller.percentiles()
        for _ in range(ROUNDS):
            for case, figures in zip(cases, found, strict=True):
                with case():
                    figures.append(await caller.percentiles())
    return [(statistics.median(p50 for p50, _ in each), statistics.median(p99 for _, p99 in each)) for each in found]


def main() -> None:
    """Measure each kind of flood, print the table."""
    columns = ("blue alone", "red floods another depot", "red floods blue's", "to alone", "to elsewhere")
    table = Table(
        "64 calls at a time, of", *columns, title="lookups of 4,096 tokens: p50 / p99 in ms, and ratios of p99"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tenants.json"
        hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("red", "blue")}
        path.write_text(json.dumps({"tenants": [{"name": name, "tokens": [hashes[name]]} for name in hashes]}))
        with_tenants = ("--tenants", str(path))
        for what, flags, tokens in (
            ("another tenant", with_tenants, ("red", "blue")),
            ("another tenant that may have 4", (*with_tenants, "--tenant-max-concurrent-rpcs", "4"), ("red", "blue")),
            ("a client with a wrong token", with_tenants, (WRONG, "blue")),
            ("another instance, no tenants", (), ("", "")),
        ):
            common = ("--l1-size", "256MiB", "--log-level", "error", *flags)
            with server_process(*common) as depot, server_process(*common) as elsewhere:
                figures = uvloop.run(measure(depot, elsewhere, tokens))
            p99_alone, p99_elsewhere, p99_here = (p99 for _, p99 in figures)
            table.add_row(
                what,
                *(f"{p50:.2f} / {p99:.2f}" for p50, p99 in figures),
                f"{p99_here / p99_alone:.2f}",
                f"{p99_here / p99_elsewhere:.2f}",
            )
    Console(width=130).print(table)


if __name__ == "__main__":
    if sys.argv[1:]:
        uvloop.run(flood(sys.argv[1], sys.argv[2]))
    else:
        main()

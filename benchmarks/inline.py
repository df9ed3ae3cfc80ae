"""Inline store and retrieve, compared with bare gRPC streams of the same messages."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import numpy as np

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape
from kvdepot.inline import messages
from kvdepot.layout import layouts
from kvdepot.v1.cache_pb2 import Lease
from kvdepot.wire import MAX_PIECE_BYTES

SHAPE = KvShape(num_layers=32, num_blocks=1, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")
TOKENS = 2_048
ROUNDS = 7


async def measure() -> list[Figure]:
    """Measure the GB/s of both directions."""
    rng = np.random.default_rng(0)
    groups = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(SHAPE)]
    stores, retrieves, sinks, sources = [], [], [], []
    with servers.depot("--l1-size", "2GiB") as depot, servers.echo() as echo:
        async with (
            AsyncDepotClient(depot.unix) as client,
            await client.attach(instance_id="bench", model_name="llama-3-8b", groups=groups) as attachment,
            grpc.aio.insecure_channel(echo.unix) as channel,
        ):
            await servers.until_populated(client)
            num_bytes = attachment.chunk_bytes * TOKENS // attachment.chunk_size
            data = rng.integers(0, 256, num_bytes, dtype=np.uint8)
            sink: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/echo/Sink")
            source: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/echo/Source")

            async def pieces() -> AsyncIterator[bytes]:
                for message in messages(data):
                    yield message

            async def retrieved(session: str, lease: Lease) -> None:
                async for _ in attachment.retrieve_inline(session, lease):
                    pass

            async def drawn() -> None:
                async for _ in source(b"%d" % -(-num_bytes // MAX_PIECE_BYTES)):
                    pass

            for number in range(ROUNDS):
                session, prompt = str(number), rng.integers(0, 128_000, TOKENS, dtype=np.uint32)
                stores.append(await seconds_of(attachment.store_inline(session, prompt, data)))
                sinks.append(await seconds_of(sink(pieces())))
                lease = (await attachment.lookup(session, prompt)).lease
                retrieves.append(await seconds_of(retrieved(session, lease)))
                sources.append(await seconds_of(drawn()))
                await attachment.end_session(session)
    return [
        Figure(
            what=f"{what}, {TOKENS:,} tokens, {num_bytes >> 20} MiB",
            unit="GB/s",
            values=[num_bytes / each / 1e9 for each in ours],
            baseline="a bare stream",
            baseline_values=[num_bytes / each / 1e9 for each in bare],
            goal=Goal(at_least=0.8),
        )
        for what, ours, bare in (("inline store", stores, sinks), ("inline retrieve", retrieves, sources))
    ]

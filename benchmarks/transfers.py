"""Store and retrieve of scattered blocks through the real RPCs, compared with memcpy in as many threads."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from benchmarks.memcpy import THREADS, MemcpyLoop, block_addresses, memcpy_seconds
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer
from kvdepot.layout import layouts
from kvdepot.layout.layout import Layout

ROUNDS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model's buffer, and the lengths of its prompts."""

    name: str
    layout: Layout
    shape: KvShape
    tokens: tuple[int, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in one plane."""
        shape = self.shape
        return shape.block_size * shape.num_heads * shape.head_size * 2


LLAMA_3_8B = KvShape(num_layers=32, num_blocks=1_024, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")
DEEPSEEK_V3 = KvShape(num_layers=61, num_blocks=256, block_size=64, num_heads=1, head_size=576, dtype="bfloat16")
CASES = (
    Case(name="Llama-3-8B", layout=layouts.NL_X_TWO_NB_BS_NH_HS, shape=LLAMA_3_8B, tokens=(256, 2_048, 8_192)),
    Case(name="Llama-3-8B HND", layout=layouts.NL_X_TWO_NB_NH_BS_HS, shape=LLAMA_3_8B, tokens=(2_048,)),
    Case(name="DeepSeek-V3 MLA", layout=layouts.NL_X_NB_BS_HS, shape=DEEPSEEK_V3, tokens=(2_048,)),
)


async def measure() -> list[Figure]:
    """Measure each case with a depot of its own."""
    figures: list[Figure] = []
    for case in CASES:
        with servers.depot("--l1-size", "3GiB", "--transfer-threads", str(THREADS)) as depot:
            figures += await _measure(depot.unix, case)
    return figures


async def _measure(address: str, case: Case) -> list[Figure]:
    """Measure store, retrieve, loops and memcpy alternately."""
    rng = np.random.default_rng(0)
    loop = MemcpyLoop()
    with SharedBuffer.create(case.layout.size_bytes(case.shape)) as buffer:
        buffer.array[:] = 1
        contiguous = np.ones_like(buffer.array)
        planes = list(buffer.array.reshape(-1, case.shape.num_blocks, case.block_bytes))
        async with (
            AsyncDepotClient(address) as client,
            await client.attach(
                instance_id="bench",
                model_name=case.name,
                groups=[case.layout.from_shape(case.shape)],
                regions=[buffer.region],
            ) as attachment,
        ):
            await servers.until_populated(client)
            figures: list[Figure] = []
            for num_tokens in case.tokens:
                num_blocks = num_tokens // case.shape.block_size
                num_bytes = num_blocks * len(planes) * case.block_bytes
                rates: dict[str, list[float]] = defaultdict(list)
                for number in range(ROUNDS):
                    session = f"{num_tokens}-{number}"
                    prompt = rng.integers(0, 2**31, num_tokens, dtype=np.uint32)
                    blocks = rng.permutation(case.shape.num_blocks)[:num_blocks]
                    scattered = block_addresses(planes, blocks)
                    packed = (contiguous.ctypes.data + np.arange(len(scattered)) * case.block_bytes).astype(np.uintp)
                    seconds = {"store": await seconds_of(attachment.store(session, prompt, [blocks]))}
                    lease = (await attachment.lookup(session, prompt)).lease
                    seconds["retrieve"] = await seconds_of(attachment.retrieve(session, lease, [blocks]))
                    await attachment.end_session(session)
                    seconds["gather"] = loop.seconds(packed, scattered, case.block_bytes)
                    seconds["scatter"] = loop.seconds(scattered, packed, case.block_bytes)
                    seconds["memcpy"] = memcpy_seconds(contiguous, buffer.array, num_bytes)
                    for name, each in seconds.items():
                        rates[name].append(num_bytes / each / 1e9)
                for name, limit in (("store", "gather"), ("retrieve", "scatter")):
                    what = f"{name}, {case.name}, {num_tokens:,} tokens, {num_bytes >> 20} MiB"
                    figures += [
                        Figure(
                            what=what,
                            unit="GB/s",
                            values=rates[name],
                            baseline="loop of memcpy",
                            baseline_values=rates[limit],
                            goal=Goal(at_least=1.0),
                        ),
                        Figure(
                            what="",
                            unit="GB/s",
                            values=rates[name],
                            baseline="one memcpy",
                            baseline_values=rates["memcpy"],
                            goal=Goal(at_least=0.6),
                        ),
                    ]
            return figures

"""A prompt of six chunks whose chunks a test moves from L1 into a tier that it controls."""

from __future__ import annotations

from service.l1.keys import ChunkKey
from service.l1.past import RemovalReason
from tests.e2e.engines import Engine, Site, prompt
from tests.fakes.paged import Kv
from tests.fakes.tier import FakeTier

CHUNK_SIZE = 16
NUM_CHUNKS = 6
NUM_TOKENS = NUM_CHUNKS * CHUNK_SIZE
TOKENS = prompt(NUM_TOKENS)


async def moved_to(tier: FakeTier, site: Site, engine: Engine, num_chunks: int = NUM_CHUNKS) -> Kv:
    """Store the prompt, and move its chunks from the `NUM_CHUNKS - num_chunks`-th on out of L1 into a tier."""
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("writer", TOKENS, kv)
    move(tier, site, num_chunks)
    return kv


def move(tier: FakeTier, site: Site, num_chunks: int) -> list[ChunkKey]:
    """Move the last chunks that were stored into a tier."""
    index = site.depot.index
    chunks = list(index.chunks())[-num_chunks:]
    tier.write(chunks)
    for victim in chunks:
        index.remove(victim, RemovalReason.EVICTED)
    return [chunk.key for chunk in chunks]

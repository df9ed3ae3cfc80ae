"""An index that serves prompts: a request uses the chunks that are there, and stores the others behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from blake3 import blake3

from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool

SLOT_BYTES = 64


def key(name: str) -> ChunkKey:
    """Return the key of a chunk: any bytes, as those of real keys."""
    return ChunkKey(blake3(name.encode()).digest())


class Prompts:
    """An index of so many slots. Chunks are named like the prompt and their position: a0, a1, and so on."""

    def __init__(self, num_slots: int, eviction: PolicyName = PolicyName.LEARNED) -> None:
        self.index = Index(Pool(num_slots * SLOT_BYTES), None, eviction)
        self._names: dict[ChunkKey, str] = {}
        self._pending_write = PendingWrite(asyncio.new_event_loop().create_future())

    def request(
        self,
        prompt: str,
        length: int,
        *,
        slot_bytes: int = SLOT_BYTES,
        tenant: str = "",
        prefill_rate: float | None = None,
        will_continue: bool = False,
    ) -> list[Chunk]:
        """Use the prompt's chunks that are there, and store the others. Return those that are there then."""
        index = self.index
        namespace = Namespace(f"{tenant}/{slot_bytes}/{prefill_rate}".encode())
        stats = index.namespace_stats(namespace, model_name="m", cache_salt="", rank=0, tenant=tenant)
        stats.prefill_tokens_per_second = prefill_rate
        chunks: list[Chunk] = []
        for position in range(length):
            name = f"{prompt}{position}"
            self._names[key(name)] = name
            chunk = index.get(key(name))
            if chunk is None:
                chunk, _ = index.reserve(key(name), stats, slot_bytes, self._pending_write)
                if chunk is None:
                    break
                index.commit(chunk)
            else:
                index.pin([chunk])
            index.connect(chunks[-1] if chunks else None, chunk, position)
            chunks.append(chunk)
        index.count_use(chunks, index.new_request(), will_continue=will_continue)
        index.unpin(chunks)
        return chunks

    def chunks(self, prompt: str, length: int) -> list[Chunk]:
        """Return the chunks of a prompt that are there."""
        found = [self.index.get(key(f"{prompt}{position}")) for position in range(length)]
        return [chunk for chunk in found if chunk is not None]

    @property
    def names(self) -> set[str]:
        """The names of the chunks that are there."""
        return {self._names[chunk.key] for chunk in self.index.chunks()}

    def check(self) -> None:
        """Assert the index's invariants, and that no chunk is there without the ones before it."""
        self.index.check()
        for chunk in self.index.chunks():
            assert chunk.position == 0 or (chunk.parent is not None and not chunk.parent.removed), chunk


def requests(prompts: Prompts, names: Sequence[str], length: int = 1) -> None:
    """Make a request for each prompt, in order."""
    for name in names:
        prompts.request(name, length)

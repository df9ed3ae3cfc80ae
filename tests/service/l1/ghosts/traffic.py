"""Traffic on an index: requests that look a prompt up, and then store what was missing, as engines do."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from blake3 import blake3

from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.policy_set import PolicySet
from service.l1.ghosts.ghosts import Ghosts
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool

SLOT_BYTES = 64
CHUNK_TOKENS = 128


def key(name: object) -> ChunkKey:
    """Return the key of a chunk: any bytes, as those of real keys."""
    return ChunkKey(blake3(str(name).encode()).digest())


class FakeClock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Traffic:
    """An index of so many slots. `num_asked` and `num_hit` count chunks of prompts."""

    def __init__(
        self, num_slots: int, eviction: PolicyName = PolicyName.LRU, *, min_shift: int = 0, salt: int = 0
    ) -> None:
        self.clock = FakeClock()
        self.index = Index(Pool(num_slots * SLOT_BYTES), None, eviction)
        self.index.uses.ghosts = Ghosts(
            num_slots * SLOT_BYTES, self.policies, clock=self.clock, min_shift=min_shift, salt=salt
        )
        self.num_asked = self.num_hit = 0
        self._pending_write = PendingWrite(asyncio.new_event_loop().create_future())

    @property
    def policies(self) -> PolicySet:
        """The policies of the index."""
        return self.index.policies

    def request(
        self,
        names: Sequence[object],
        num_answered: int = 0,
        *,
        slot_bytes: int = SLOT_BYTES,
        tenant: str = "",
        model_name: str = "m",
    ) -> None:
        """Look up the chunks of a prompt, and store them. The last `num_answered` are those of the answer."""
        index, request = self.index, self.index.new_request()
        namespace = Namespace(f"{tenant}/{model_name}/{slot_bytes}".encode())
        stats = index.namespace_stats(
            namespace, model_name=model_name, cache_salt="", rank=0, tenant=tenant, chunk_size=CHUNK_TOKENS
        )
        num_asked = len(names) - num_answered
        chunks: list[Chunk] = []
        for name in names[:num_asked]:
            chunk = index.get(key(name))
            if chunk is None:
                break
            chunks.append(chunk)
        num_hit = len(chunks)
        index.pin(chunks)
        index.count_hits(chunks, request)
        index.ghosts.note_lookup(tenant, model_name, num_asked * CHUNK_TOKENS, num_hit * CHUNK_TOKENS)
        self.num_asked += num_asked
        self.num_hit += num_hit
        for name in names[num_hit:]:
            chunk = index.get(key(name))
            if chunk is None:
                chunk, _ = index.reserve(key(name), stats, slot_bytes, self._pending_write)
                if chunk is None:
                    break
                index.commit(chunk)
            else:
                index.pin([chunk])
            chunks.append(chunk)
        for position, chunk in enumerate(chunks):
            index.connect(chunks[position - 1] if position else None, chunk, position)
        index.count_use(chunks, request, num_asked=num_asked)
        index.unpin(chunks)

    def hit_tokens(self, policy: PolicyName, factor: float = 1.0, window_seconds: float = float("inf")) -> float:
        """Return the estimate of one ghost cache, of all tenants and models."""
        return sum(
            point.hit_tokens
            for curve in self.index.ghosts.curves(window_seconds)
            for point in curve.points
            if point.policy is policy
            and not point.tiers
            and point.capacity_bytes == int(self.index.capacity_bytes * factor)
        )

    def ratio(self, policy: PolicyName, factor: float = 1.0) -> float:
        """Return the estimated hit ratio of one ghost cache."""
        return self.hit_tokens(policy, factor) / (self.num_asked * CHUNK_TOKENS)


class PlainLru:
    """An LRU cache of chunks, as simple as it can be: what a prompt's head and tail do is up to the caller."""

    def __init__(self, capacity_bytes: float) -> None:
        self.capacity_bytes = capacity_bytes
        self.held: OrderedDict[object, int] = OrderedDict()
        self.num_hit = 0

    def use(self, name: object, slot_bytes: int = SLOT_BYTES) -> bool:
        """Use a chunk. Return whether it was a hit."""
        is_hit = name in self.held
        self.held[name] = slot_bytes
        self.held.move_to_end(name)
        while sum(self.held.values()) > self.capacity_bytes:
            self.held.popitem(last=False)
        self.num_hit += is_hit
        return is_hit

"""The order in which chunks are evicted: a policy ranks those that can leave, and a tail leaves before its head."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Container, Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import cast

from service.l1.chunk import Chunk
from service.l1.eviction.links import LinkedList
from service.l1.eviction.policies import Policy

USES_PER_SORT = 256
"""After so many uses of chunks the ranks are computed anew. They change with the age of chunks."""

_rank = attrgetter("rank")


class _Bucket:
    """Chunks of one size and tenant that have one rank."""

    __slots__ = ("chunks", "number", "rank")

    def __init__(self, number: int, rank: float) -> None:
        self.number = number
        self.rank = rank
        self.chunks = LinkedList()


class _Ranked:
    """The buckets of one size and tenant, the lowest rank first. Empty ones are dropped when they come first."""

    __slots__ = ("by_number", "in_order")

    def __init__(self) -> None:
        self.by_number: dict[int, _Bucket] = {}
        self.in_order: list[_Bucket] = []

    def bucket(self, number: int, policy: Policy, clock: int) -> _Bucket:
        """Return the bucket of a number, which may be new."""
        bucket = self.by_number.get(number)
        if bucket is None:
            bucket = self.by_number[number] = _Bucket(number, policy.rank(number, clock))
            insort(self.in_order, bucket, key=_rank)
        return bucket

    def sort(self, policy: Policy, clock: int) -> None:
        """Compute all ranks anew. Buckets whose chunks differ little in age become one."""
        joined: dict[int, _Bucket] = {}
        for number in sorted(self.by_number):
            bucket = self.by_number[number]
            if bucket.chunks:
                older = joined.get(policy.merged(number, clock))
                if older is not None:
                    older.chunks.extend(bucket.chunks)
                    older.number = number
                else:
                    joined[policy.merged(number, clock)] = bucket
        self.by_number = {bucket.number: bucket for bucket in joined.values()}
        for bucket in joined.values():
            bucket.rank = policy.rank(bucket.number, clock)
        self.in_order = sorted(joined.values(), key=_rank)

    def drop_empty(self) -> None:
        """Drop the buckets without chunks that come first."""
        while self.in_order and not self.in_order[0].chunks:
            del self.by_number[self.in_order.pop(0).number]

    def victims(self) -> Iterator[tuple[float, Chunk]]:
        """Yield the chunks that can leave now, each with its rank, the lowest first. Nothing may change meanwhile."""
        for bucket in self.in_order:
            for link in bucket.chunks:
                chunk = cast(Chunk, link)
                if not chunk.num_readers:
                    yield bucket.rank, chunk

    def heads(self) -> Iterator[tuple[float, Chunk]]:
        """Yield chunks that only leaves continue which tiers read. They may leave if nothing else can."""
        for bucket in self.in_order:
            for link in bucket.chunks:
                chunk: Chunk | None = cast(Chunk, link).parent
                while chunk is not None and chunk.num_readers:
                    chunk = chunk.parent
                if chunk is not None and chunk.evictable:
                    yield bucket.rank, chunk


class EvictionOrder:
    """The *leaves*: resident chunks without pins that no chunk in L1 continues. What a tier reads is no victim.

    A chunk with a child is in no list. It comes into one when its last child has left. So whatever the policy thinks of
    them, the tail of a prefix leaves before its head.

    `clock` counts uses of chunks. `of` names the tenants whose chunks may leave; None: all.
    """

    def __init__(self, policy: Policy) -> None:
        self.clock = 0
        self._policy = policy
        self._ranked: dict[int, dict[str, _Ranked]] = {}  # by size of slot and tenant
        self._next_sort = 0

    def begin_use(self, num_chunks: int) -> None:
        """Begin a use of so many chunks, which are used later than all before."""
        self.clock += num_chunks

    def count_use(self, chunk: Chunk) -> None:
        """Count a use of a chunk in what the policy knows about it."""
        chunk.num_uses += 1
        self._policy.note_use(chunk, self.clock)

    def add(self, chunk: Chunk) -> None:
        """Note that a chunk without pins was used at this time. It can be evicted if it is a leaf."""
        chunk.last_use = self.clock
        self.restore(chunk)

    def restore(self, chunk: Chunk) -> None:
        """Add a chunk, as it was used last at its `last_use`."""
        if not chunk.num_children:
            self._bucket(chunk).chunks.append(chunk)

    def remove(self, chunk: Chunk) -> None:
        """Take out a chunk that gets pins, or leaves."""
        if chunk.is_linked:
            chunk.unlink()

    def connect(self, parent: Chunk, child: Chunk) -> None:
        """Note that a chunk continues another one, which is no leaf then. Positions grow, so there is no circle."""
        if child.position == parent.position + 1 and (child.parent is None or child.parent.removed):
            child.parent = parent
            parent.num_children += 1
            self.remove(parent)

    def note_child_left(self, child: Chunk) -> None:
        """Note that a chunk has left. The one that it continues may be a leaf now, and leaves next of its rank."""
        parent, child.parent = child.parent, None
        if parent is not None and not parent.removed:
            parent.num_children -= 1
            if parent.num_children == 0 and parent.is_unprotected:
                self._bucket(parent).chunks.prepend(parent)

    def standing(self, chunk: Chunk) -> tuple[float, int]:
        """Return the rank that a chunk has, or would have as a leaf, and its last use. The lower one leaves first."""
        return self._policy.rank(self._policy.bucket(chunk), self.clock), chunk.last_use

    def next_victim(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of this size that is evicted next."""
        return min(self._first_victims([slot_bytes], of), key=_rank_and_age, default=(0.0, None))[1]

    def next_victim_of_other_size(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of any other size that is evicted next."""
        others = [size for size in self._ranked if size != slot_bytes]
        return min(self._first_victims(others, of), key=_rank_and_age, default=(0.0, None))[1]

    def next_victims(self, slot_bytes: int, num_chunks: int) -> Iterator[Chunk]:
        """Yield the first chunks of this size that will be evicted. The order must not change meanwhile."""
        leaves = heapq.merge(
            *(ranked.victims() for ranked in self._ranked.get(slot_bytes, {}).values()), key=lambda pair: pair[0]
        )
        waiting: list[tuple[float, int, Chunk]] = []  # parents that are leaves by then
        children_left: dict[Chunk, int] = {}
        leaf = next(leaves, None)
        for number in range(num_chunks):
            if waiting and (leaf is None or waiting[0][0] <= leaf[0]):
                victim = heapq.heappop(waiting)[2]
            elif leaf is not None:
                victim = leaf[1]
                leaf = next(leaves, None)
            else:
                return
            yield victim
            parent = victim.parent
            if parent is not None and not parent.removed:
                children_left[parent] = left = children_left.get(parent, parent.num_children) - 1
                if left == 0 and parent.evictable and parent.slot.size_bytes == slot_bytes:
                    heapq.heappush(waiting, (self.standing(parent)[0], -number, parent))

    def __iter__(self) -> Iterator[Chunk]:
        """Yield each leaf."""
        for ranked in self._all():
            for bucket in ranked.in_order:
                for link in bucket.chunks:
                    yield cast(Chunk, link)

    def _all(self) -> Iterator[_Ranked]:
        return chain.from_iterable(by_tenant.values() for by_tenant in self._ranked.values())

    def _bucket(self, chunk: Chunk) -> _Bucket:
        by_tenant = self._ranked.get(chunk.slot.size_bytes)
        if by_tenant is None:
            by_tenant = self._ranked[chunk.slot.size_bytes] = {}
        tenant = chunk.namespace_stats.tenant
        ranked = by_tenant.get(tenant)
        if ranked is None:
            ranked = by_tenant[tenant] = _Ranked()
        return ranked.bucket(self._policy.bucket(chunk), self._policy, self.clock)

    def note_evicted(self, chunk: Chunk) -> None:
        """Note that a chunk is the victim."""
        self._policy.note_evicted(self._policy.bucket(chunk))

    def _first_victims(self, sizes: Iterable[int], of: Container[str] | None) -> Iterator[tuple[float, Chunk]]:
        """Yield the next victim of each of these sizes and of each tenant."""
        if self.clock >= self._next_sort:
            self._sort()
        for size in sizes:
            for tenant, ranked in self._ranked.get(size, {}).items():
                if of is None or tenant in of:
                    ranked.drop_empty()
                    yield from islice(chain(ranked.victims(), ranked.heads()), 1)

    def _sort(self) -> None:
        self._next_sort = self.clock + USES_PER_SORT
        self._policy.update(self.clock)
        for size in list(self._ranked):
            by_tenant = self._ranked[size]
            for tenant in list(by_tenant):
                by_tenant[tenant].sort(self._policy, self.clock)
                if not by_tenant[tenant].in_order:
                    del by_tenant[tenant]
            if not by_tenant:
                del self._ranked[size]


def _rank_and_age(ranked: tuple[float, Chunk]) -> tuple[float, int]:
    return ranked[0], ranked[1].last_use

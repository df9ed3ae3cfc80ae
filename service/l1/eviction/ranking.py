"""A ranking of chunks: buckets of chunks that have one rank, the lowest rank first. Of equal ranks, the older first."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from operator import attrgetter
from typing import cast

from service.l1.chunk import Chunk
from service.l1.eviction.links import Link, LinkedList
from service.l1.eviction.policies import Policy

MAX_PASSED = 64
_MIN_BUCKETS_TO_TIDY = 1_024

Standing = tuple[float, int]
"""The rank of a chunk and the number of its bucket. The lower one leaves first."""

_standing = attrgetter("rank", "number")


class _Bucket:
    """Chunks that have one rank. They leave in the order in which they came."""

    __slots__ = ("chunks", "number", "rank")

    def __init__(self, number: int, rank: float) -> None:
        self.number = number
        self.rank = rank
        self.chunks = LinkedList()


class Ranking:
    """Buckets by their numbers, and in the order of their ranks. A chunk leaves by `unlink`.

    The ranks of a policy may change with time. They are right after `sort`. Empty buckets are dropped when they come
    first, and all of them when there are many.
    """

    __slots__ = ("_by_number", "_in_order", "_most_buckets")

    def __init__(self) -> None:
        self._by_number: dict[int, _Bucket] = {}
        self._in_order: list[_Bucket] = []
        self._most_buckets = _MIN_BUCKETS_TO_TIDY

    def __bool__(self) -> bool:
        return any(bucket.chunks for bucket in self._in_order)

    def __repr__(self) -> str:
        return f"<Ranking, {len(self._in_order)} buckets>"

    def append(self, link: Link, number: int, policy: Policy, clock: int) -> None:
        """Add what leaves last of the bucket with this number."""
        self._bucket(number, policy, clock).append(link)

    def insert(self, chunk: Chunk, number: int, policy: Policy, clock: int) -> None:
        """Add a chunk to the bucket with this number: it leaves after those that were used before it.

        If the first `MAX_PASSED` of them were, it leaves after these.
        """
        chunks = self._bucket(number, policy, clock)
        link = chunks.first()
        for _ in range(MAX_PASSED):
            if link is None or cast(Chunk, link).last_use >= chunk.last_use:
                break
            link = chunks.after(link)
        chunks.insert_before(link, chunk)

    def sort(self, policy: Policy, clock: int) -> None:
        """Compute all ranks anew. Buckets whose chunks differ little in age become one."""
        joined: dict[int, _Bucket] = {}
        for number in sorted(self._by_number):
            bucket = self._by_number[number]
            if bucket.chunks:
                into = policy.merged(number, clock)
                older = joined.get(into)
                if older is not None:
                    older.chunks.extend(bucket.chunks)
                    older.number = number
                else:
                    joined[into] = bucket
        self._by_number = {bucket.number: bucket for bucket in joined.values()}
        for bucket in joined.values():
            bucket.rank = policy.rank(bucket.number, clock)
        self._in_order = sorted(joined.values(), key=_standing)

    def first(self) -> tuple[Standing, Chunk] | None:
        """Return what leaves first, with its standing."""
        in_order = self._in_order
        while in_order:
            bucket = in_order[0]
            link = bucket.chunks.first()
            if link is not None:
                return (bucket.rank, bucket.number), cast(Chunk, link)
            del self._by_number[bucket.number]
            del in_order[0]
        return None

    def last(self) -> Link | None:
        """Return what leaves last; None: there is nothing."""
        in_order = self._in_order
        while in_order:
            link = in_order[-1].chunks.last()
            if link is not None:
                return link
            del self._by_number[in_order.pop().number]
        return None

    def __iter__(self) -> Iterator[tuple[Standing, Chunk]]:
        """Yield each chunk with its standing, the lowest first. Nothing may change meanwhile."""
        for bucket in self._in_order:
            standing = bucket.rank, bucket.number
            for link in bucket.chunks:
                yield standing, cast(Chunk, link)

    def _bucket(self, number: int, policy: Policy, clock: int) -> LinkedList:
        bucket = self._by_number.get(number)
        if bucket is None:
            if len(self._by_number) >= self._most_buckets:
                self._tidy()
            bucket = self._by_number[number] = _Bucket(number, policy.rank(number, clock))
            insort(self._in_order, bucket, key=_standing)
        return bucket.chunks

    def _tidy(self) -> None:
        """Drop all empty buckets."""
        self._in_order = [bucket for bucket in self._in_order if bucket.chunks]
        self._by_number = {bucket.number: bucket for bucket in self._in_order}
        self._most_buckets = max(_MIN_BUCKETS_TO_TIDY, 2 * len(self._in_order))

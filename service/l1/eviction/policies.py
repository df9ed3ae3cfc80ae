"""Eviction policies: each says how chunks are ranked. The chunk of the lowest rank is evicted first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from service.l1.chunk import Chunk
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.reuse_times import NUM_CLASSES, ReuseTimes, class_of

USES_PER_BUCKET = 64
"""Chunks that were used last within so many uses of chunks have one rank. They leave in the order of their uses."""


_BEFORE_ALL = 1 << 62
_AGES_APART = 4
_CLASSES = 1 << (NUM_CLASSES - 1).bit_length()


class Policy(Protocol):
    """A rank for each chunk, by the bucket that it is in. A bucket is a number, which grows with the last use."""

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Note a use of a chunk, whose counts have it already."""

    def note_evicted(self, bucket: int) -> None:
        """Note that a chunk of a bucket was the victim."""

    def bucket(self, chunk: Chunk) -> int:
        """Return the bucket of a chunk. It is the same until the chunk's next use."""

    def rank(self, bucket: int, clock: int) -> float:
        """Return the rank of a bucket at a time."""

    def merged(self, bucket: int, clock: int) -> int:
        """Return a number that is the same for buckets whose ranks will be about the same."""

    def update(self, clock: int) -> None:
        """Learn from the uses so far, if there were enough since the last time."""


class _FixedRanks:
    """A policy whose ranks do not change while a chunk waits: the bucket is the rank."""

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Do nothing: the chunk's own counts are enough."""

    def note_evicted(self, bucket: int) -> None:
        """Do nothing."""

    def rank(self, bucket: int, clock: int) -> float:
        """Return the bucket itself."""
        return bucket

    def merged(self, bucket: int, clock: int) -> int:
        """Join nothing."""
        return bucket

    def update(self, clock: int) -> None:
        """Do nothing."""


class LeastRecentlyUsed(_FixedRanks):
    """The chunk leaves first whose last use was first."""

    def bucket(self, chunk: Chunk) -> int:
        """Return when the chunk was used last."""
        return chunk.last_use // USES_PER_BUCKET


class SecondLastUse(_FixedRanks):
    """The chunk leaves first whose last use but one was first; before all others, one that was used once (LRU-2).

    E. O'Neil, P. O'Neil, G. Weikum: The LRU-K Page Replacement Algorithm for Database Disk Buffering, 1993.
    """

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Remember the use before."""
        chunk.policy_note = chunk.last_use

    def bucket(self, chunk: Chunk) -> int:
        """Return when the chunk was used last but one. It is negative if it was used once."""
        if chunk.num_uses > 1:
            return chunk.policy_note // USES_PER_BUCKET
        return chunk.last_use // USES_PER_BUCKET - _BEFORE_ALL


class LeastFrequentlyUsed(_FixedRanks):
    """The chunk leaves first that was used least often. What was used before the last victims counts less and less.

    M. Arlitt et al.: Evaluating Content Management Techniques for Web Proxy Caches, 1999 (LFU with dynamic aging).
    """

    def __init__(self) -> None:
        self._age = 0  # the highest rank that a victim had

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Give the chunk its rank."""
        chunk.policy_note = self._age + chunk.num_uses

    def note_evicted(self, bucket: int) -> None:
        """Let all chunks age that are used from here on."""
        self._age = max(self._age, bucket)

    def bucket(self, chunk: Chunk) -> int:
        """Return the uses of the chunk, and the age of the order at the last one."""
        return chunk.policy_note


class Learned:
    """The chunk leaves first that is worth least to keep, by what was learned about reuse times."""

    def __init__(self) -> None:
        self._reuse_times = ReuseTimes()

    def note_use(self, chunk: Chunk, clock: int) -> None:
        """Learn from the time since the last use."""
        self._reuse_times.note_use(chunk.key, chunk.num_uses, clock)

    def note_evicted(self, bucket: int) -> None:
        """Do nothing."""

    def bucket(self, chunk: Chunk) -> int:
        """Return the time of the last use, and the class of the chunk."""
        return chunk.last_use // USES_PER_BUCKET * _CLASSES + class_of(chunk.num_uses)

    def rank(self, bucket: int, clock: int) -> float:
        """Return the rate of hits of such chunks."""
        last_use, num_class = divmod(bucket, _CLASSES)
        return self._reuse_times.hit_rate(num_class, clock - last_use * USES_PER_BUCKET)

    def merged(self, bucket: int, clock: int) -> int:
        """Join buckets of one class whose ages differ by an eighth at most."""
        last_use, num_class = divmod(bucket, _CLASSES)
        age = clock // USES_PER_BUCKET - last_use
        shift = max(0, (age // _AGES_APART).bit_length() - 1)
        # Spans begin at multiples of their length. So a bucket joins the same others whenever it is asked, and what is
        # old does not get younger with each one that it joins.
        return ((last_use >> shift) << 6 | shift) * _CLASSES + num_class

    def update(self, clock: int) -> None:
        """Learn from the uses so far."""
        self._reuse_times.update(clock)


_POLICIES: Mapping[PolicyName, Callable[[], Policy]] = {
    PolicyName.AUTO: Learned,
    PolicyName.LRU: LeastRecentlyUsed,
    PolicyName.LFU: LeastFrequentlyUsed,
    PolicyName.LRU2: SecondLastUse,
    PolicyName.LEARNED: Learned,
}


def policy_of(name: PolicyName) -> Policy:
    """Return a new policy of this name; of `AUTO`, the one to begin with."""
    return _POLICIES[name]()

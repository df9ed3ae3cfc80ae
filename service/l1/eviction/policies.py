"""Eviction policies: each says how chunks are ranked. The chunk of the lowest rank is evicted first."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.l1.chunk import Chunk
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.reuse_times import NUM_CLASSES, ReuseTimes, class_of
from service.l1.eviction.worth import NUM_LEVELS, SECONDS_PER_GIB, Worth, seconds_per_gib_of

USES_PER_BUCKET = 64
"""Chunks that were used last within so many uses of chunks have one rank. They leave in the order of their uses."""


_BEFORE_ALL = 1 << 62
_AGES_APART = 4
_KINDS = NUM_CLASSES * NUM_LEVELS


class Policy(Protocol):
    """A rank for each chunk, by the bucket that it is in. A bucket is a number, which grows with the last use.

    `ranks_change` says that the rank of a bucket depends on the time.
    """

    ranks_change: bool

    def note_evicted(self, chunk: Chunk) -> None:
        """Note that a chunk is the victim."""

    def bucket(self, chunk: Chunk) -> int:
        """Return the bucket of a chunk. It is the same until the chunk's next use."""

    def rank(self, bucket: int, clock: int) -> float:
        """Return the rank of a bucket at a time."""

    def ranks(self, buckets: npt.NDArray[np.int64], clock: int) -> npt.NDArray[np.float64]:
        """Return the rank of each of many buckets."""

    def merged(self, bucket: int, clock: int) -> int:
        """Return a number that is the same for buckets whose ranks will be about the same."""

    def update(self, clock: int) -> None:
        """Learn from the uses so far, if there were enough since the last time."""


class _FixedRanks:
    """A policy whose ranks do not change while a chunk waits: the bucket is the rank."""

    ranks_change = False

    def note_evicted(self, chunk: Chunk) -> None:
        """Do nothing."""

    def rank(self, bucket: int, clock: int) -> float:
        """Return the bucket itself."""
        return bucket

    def ranks(self, buckets: npt.NDArray[np.int64], clock: int) -> npt.NDArray[np.float64]:
        """Return the buckets themselves."""
        return buckets.astype(np.float64)

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

    def bucket(self, chunk: Chunk) -> int:
        """Return when the chunk was used last but one. It is negative if it was used once."""
        if chunk.num_uses > 1:
            return chunk.previous_use // USES_PER_BUCKET
        return chunk.last_use // USES_PER_BUCKET - _BEFORE_ALL


class LeastFrequentlyUsed(_FixedRanks):
    """The chunk leaves first that was used least often. What was used before the last victims counts less and less.

    M. Arlitt et al.: Evaluating Content Management Techniques for Web Proxy Caches, 1999 (LFU with dynamic aging).
    """

    def __init__(self) -> None:
        self._age = 0  # the highest rank that a victim had

    def note_of(self, chunk: Chunk) -> int:
        """Return the rank that a use gives to a chunk: the uses of the chunk, and the age of the order."""
        return self._age + chunk.num_uses

    def note_evicted(self, chunk: Chunk) -> None:
        """Let all chunks age that are used from here on."""
        self.note_evicted_rank(chunk.policy_note)

    def note_evicted_rank(self, rank: int) -> None:
        """Note the rank of a victim."""
        self._age = max(self._age, rank)

    def bucket(self, chunk: Chunk) -> int:
        """Return the rank that the last use gave to the chunk."""
        return chunk.policy_note


class Learned:
    """The chunk leaves first that saves least, for each byte and each moment of the time to keep it.

    That is the rate of hits of such chunks, as it was learned, times what a hit saves.
    """

    ranks_change = True

    def __init__(self, reuse_times: ReuseTimes, worth: Worth) -> None:
        self._reuse_times = reuse_times
        self._worth = worth

    def note_evicted(self, chunk: Chunk) -> None:
        """Do nothing."""

    def bucket(self, chunk: Chunk) -> int:
        """Return the time of the last use, the class of the chunk, and the level of its worth."""
        kind = class_of(chunk.num_uses, chunk.will_continue) * NUM_LEVELS + self._worth.level(chunk)
        return chunk.last_use // USES_PER_BUCKET * _KINDS + kind

    def rank(self, bucket: int, clock: int) -> float:
        """Return the seconds that such a chunk saves, per GiB and use of any chunk."""
        last_use, kind = divmod(bucket, _KINDS)
        num_class, level = divmod(kind, NUM_LEVELS)
        return self._reuse_times.hit_rate(num_class, clock - last_use * USES_PER_BUCKET) * seconds_per_gib_of(level)

    def ranks(self, buckets: npt.NDArray[np.int64], clock: int) -> npt.NDArray[np.float64]:
        """Return the rank of each of many buckets."""
        last_uses, kinds = np.divmod(buckets, _KINDS)
        classes, levels = np.divmod(kinds, NUM_LEVELS)
        hit_rates = self._reuse_times.hit_rates_of(classes, clock - last_uses * USES_PER_BUCKET)
        ranks: npt.NDArray[np.float64] = hit_rates * SECONDS_PER_GIB[levels]
        return ranks

    def merged(self, bucket: int, clock: int) -> int:
        """Join buckets of one kind whose ages differ by an eighth at most."""
        last_use, kind = divmod(bucket, _KINDS)
        age = clock // USES_PER_BUCKET - last_use
        shift = max(0, (age // _AGES_APART).bit_length() - 1)
        # Spans begin at multiples of their length. So a bucket joins the same others whenever it is asked, and what is
        # old does not get younger with each one that it joins.
        return ((last_use >> shift) << 6 | shift) * _KINDS + kind

    def update(self, clock: int) -> None:
        """Learn from the uses so far."""
        self._reuse_times.update(clock)


def policy_of(name: PolicyName, reuse_times: ReuseTimes, worth: Worth) -> Policy:
    """Return a new policy of this name; of `AUTO`, the one to begin with. `Learned` uses what is given."""
    if name is PolicyName.LRU:
        return LeastRecentlyUsed()
    if name is PolicyName.LRU2:
        return SecondLastUse()
    if name is PolicyName.LFU:
        return LeastFrequentlyUsed()
    return Learned(reuse_times, worth)

"""The ids of a recording: small integers in place of fingerprints, in the order of first sight."""

from __future__ import annotations

import itertools

MAX_CHUNKS = 1 << 19
"""The ids that a recording remembers: some 64 MiB of them.

They stand for 134 million tokens in chunks of 256, which are 16 TiB of KV at 128 KiB a token.
"""
NUM_SHARDS = 256  # a dict that grows holds the interpreter: with so many small ones, for microseconds


class ChunkIds:
    """The ids of at most `capacity` chunks. A chunk that was not seen for long is forgotten, and gets a new id then.

    The `capacity / 2` chunks that were seen last are always remembered, as far as they fall evenly on the shards.
    """

    def __init__(self, capacity: int = MAX_CHUNKS) -> None:
        self._new_ids = itertools.count()
        self._max_recent = max(1, capacity // (2 * NUM_SHARDS))
        # Each shard has two generations. A full one becomes the older one, and the one before it is forgotten.
        self._recent: list[dict[int, int]] = [{} for _ in range(NUM_SHARDS)]
        self._older: list[dict[int, int]] = [{} for _ in range(NUM_SHARDS)]

    def __len__(self) -> int:
        return sum(map(len, self._recent)) + sum(map(len, self._older))

    def __repr__(self) -> str:
        return f"<ChunkIds {len(self)}/{2 * self._max_recent * NUM_SHARDS}>"

    def of(self, fingerprint: int) -> int:
        """Return the id of a fingerprint, a new one if the fingerprint is not known."""
        shard = fingerprint % NUM_SHARDS
        recent = self._recent[shard]
        found = recent.get(fingerprint)
        if found is not None:
            return found
        older = self._older[shard].get(fingerprint)
        if len(recent) >= self._max_recent:
            self._older[shard] = recent
            recent = self._recent[shard] = {}
        found = recent[fingerprint] = older if older is not None else next(self._new_ids)
        return found

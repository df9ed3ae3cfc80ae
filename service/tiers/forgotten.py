"""What was cleared in a tier that can't be enumerated: later names of the same chunks are others."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from service.l1.keys import ChunkKey
from service.tiers.record import Owner

EPOCH_BYTES = 16
NUM_OWNERS_KEPT = 4_096


class Cleared(NamedTuple):
    """Whose chunks are cleared: of a tenant (None: of all), a model ("": any) and a salt (None: any)."""

    tenant: str | None
    model_name: str
    cache_salt: str | None

    def matches(self, owner: Owner) -> bool:
        """Return whether the chunks of an owner are meant."""
        return (
            self.tenant in (None, owner.tenant)
            and self.model_name in ("", owner.model_name)
            and self.cache_salt in (None, owner.cache_salt)
        )


class Forgotten:
    """Names of chunks: their keys, or values made of the keys and of the epochs of all that was cleared of an owner.

    An epoch is random, so no name of before a clear, nor of another depot, is ever made again.
    """

    def __init__(self, new_epoch: Callable[[], bytes] = lambda: os.urandom(EPOCH_BYTES)) -> None:
        self.num_clears = 0
        self._new_epoch = new_epoch
        self._epochs: dict[Cleared, bytes] = {}
        self._suffix: Callable[[Owner], bytes] = lru_cache(NUM_OWNERS_KEPT)(self._compute_suffix)

    def clear(self, cleared: Cleared) -> None:
        """Give the chunks of owners other names from now on."""
        self.num_clears += 1
        self._epochs[cleared] = self._new_epoch()
        self._suffix = lru_cache(NUM_OWNERS_KEPT)(self._compute_suffix)

    def name(self, key: ChunkKey, owner: Owner) -> bytes:
        """Return the name of a chunk in the tier."""
        if not self._epochs:
            return key
        suffix = self._suffix(owner)
        return blake3(key + suffix).digest() if suffix else key

    def _compute_suffix(self, owner: Owner) -> bytes:
        return b"".join(epoch for cleared, epoch in self._epochs.items() if cleared.matches(owner))

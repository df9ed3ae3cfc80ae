"""What was cleared in a tier that can't be enumerated: later names of the same chunks are others.

The depots that share a tier keep one set of what was cleared. It lies in the tier itself, as a note of fixed size: a
header, and 48 bytes for each clear. Sets of two depots merge to one that has the clears of both, in any order.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from service.l1.keys import ChunkKey
from service.tiers.io_worker.messages import NOTE_BYTES
from service.tiers.record import Owner, OwnerTag, name_tag, tag_of

NUM_OWNERS_KEPT = 4_096
_MAGIC = b"kvdclr\0\1"
_HEADER = struct.Struct("<8sQ")
_ENTRY = struct.Struct("<B7x8s8s8s16s")
MAX_CLEARS = (NOTE_BYTES - _HEADER.size) // _ENTRY.size
_NO_TAG = bytes(8)
_EPOCH_RANDOM_BYTES = 8


class Cleared(NamedTuple):
    """Whose chunks are cleared, by tags: of a tenant, a model and a salt. None: of all of them."""

    tenant: bytes | None = None
    model: bytes | None = None
    salt: bytes | None = None

    @classmethod
    def of(cls, tenant: str | None, model_name: str, cache_salt: str | None) -> Cleared:
        """Return what is cleared of a tenant (None: of all), a model ("": any) and a salt (None: any)."""
        return cls(
            name_tag(tenant) if tenant is not None else None,
            name_tag(model_name) if model_name else None,
            name_tag(cache_salt) if cache_salt is not None else None,
        )

    def matches(self, owner: OwnerTag) -> bool:
        """Return whether the chunks of an owner are meant."""
        return all(tag in (None, of_owner) for tag, of_owner in zip(self, owner, strict=True))


ALL = Cleared()


class Forgotten:
    """Names of chunks: their keys, or values made of the keys and of the epochs of all that was cleared of an owner.

    An epoch is a time and random bytes, so no name of before a clear is ever made again. `num_changes` counts changes
    of the names.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.num_changes = 0
        self._clock_ns = clock_ns
        self._epochs: dict[Cleared, bytes] = {}
        self._suffix: Callable[[Owner], bytes] = self._compute_suffix

    def __len__(self) -> int:
        return len(self._epochs)

    def clear(self, cleared: Cleared) -> None:
        """Give the chunks of owners other names from now on."""
        if cleared not in self._epochs and len(self._epochs) == MAX_CLEARS:
            cleared = ALL  # the note has no space for more; this makes all others void
        after = max((int.from_bytes(epoch[:8], "big") for epoch in self._epochs.values()), default=0) + 1
        epoch = max(self._clock_ns(), after).to_bytes(8, "big") + os.urandom(_EPOCH_RANDOM_BYTES)
        self._take({cleared: epoch})

    def name(self, key: ChunkKey, owner: Owner) -> bytes:
        """Return the name of a chunk in the tier."""
        if not self._epochs:
            return key
        suffix = self._suffix(owner)
        return blake3(key + suffix).digest() if suffix else key

    def pack(self) -> bytes:
        """Return the note."""
        packed = [_HEADER.pack(_MAGIC, len(self._epochs))]
        for cleared, epoch in self._epochs.items():
            mask = sum((tag is not None) << place for place, tag in enumerate(cleared))
            packed.append(_ENTRY.pack(mask, *(tag or _NO_TAG for tag in cleared), epoch))
        return b"".join(packed).ljust(NOTE_BYTES, b"\0")

    def merge(self, note: bytes) -> bool:
        """Take what another depot's note has. Return whether the note lacks something that was known here.

        Raises: ValueError: it is no note.
        """
        theirs = _unpack(note)
        self._take(theirs)
        return self._epochs != theirs

    def _take(self, epochs: dict[Cleared, bytes]) -> None:
        """Keep the newer epoch of each clear, and none that is older than the last clear of everything."""
        merged = {
            cleared: max(self._epochs.get(cleared, b""), epochs.get(cleared, b""))
            for cleared in self._epochs.keys() | epochs.keys()
        }
        of_all = merged.get(ALL, b"")
        merged = {cleared: epoch for cleared, epoch in merged.items() if epoch >= of_all}
        if merged != self._epochs:
            self.num_changes += 1
            self._epochs = merged
            self._suffix = lru_cache(NUM_OWNERS_KEPT)(self._compute_suffix)

    def _compute_suffix(self, owner: Owner) -> bytes:
        tag = tag_of(owner)
        return b"".join(sorted(epoch for cleared, epoch in self._epochs.items() if cleared.matches(tag)))


def _unpack(note: bytes) -> dict[Cleared, bytes]:
    """Return the epochs of a note.

    Raises: ValueError.
    """
    if len(note) != NOTE_BYTES or not note.startswith(_MAGIC):
        raise ValueError("no note of what was cleared")
    _, number = _HEADER.unpack_from(note)
    if number > MAX_CLEARS:
        raise ValueError(f"a note of {number} clears")
    epochs: dict[Cleared, bytes] = {}
    for place in range(number):
        mask, *tags, epoch = _ENTRY.unpack_from(note, _HEADER.size + place * _ENTRY.size)
        epochs[Cleared(*(tag if mask >> bit & 1 else None for bit, tag in enumerate(tags)))] = epoch
    return epochs

"""The sample: which keys the ghost caches see (C. Waldspurger et al.: Efficient MRC Construction with SHARDS, 2015)."""

from __future__ import annotations

from service.l1.keys import ChunkKey

MIN_SHIFT = 3
MAX_SHIFT = 16
MAX_CHUNKS = 1_000
"""So many sampled chunks fill the ghost cache of L1's own size, at most."""

_BITS_OF_LAST_BYTE = 8


class Sampling:
    """One key in `weight`, by bits of the key: a key is in the sample at each of its uses, or at none.

    `mask` and `match` are for the last byte: a key whose last byte has other bits is not in the sample. The weight is a
    power of 2. It grows when L1 holds more chunks than it seemed to.
    """

    def __init__(self, capacity_bytes: int, *, min_shift: int = MIN_SHIFT, salt: int = 0) -> None:
        self._capacity_bytes = capacity_bytes
        self._salt = salt
        self._shift = min_shift
        self._set()

    def __repr__(self) -> str:
        return f"<Sampling of one key in {self.weight}>"

    def has(self, key: ChunkKey) -> bool:
        """Return whether a key is in the sample. `mask` and `match` say so more quickly of most keys."""
        return key[-1] & self.mask == self.match and (not self._second_mask or not key[-2] & self._second_mask)

    def has_bits(self, bits: int) -> bool:
        """Return whether a key with these `bits_of` it is in the sample."""
        return bits & self.mask == self.match and not (bits >> _BITS_OF_LAST_BYTE) & self._second_mask

    def fit(self, mean_slot_bytes: float) -> bool:
        """Sample less, if the sampled chunks are too many with slots of this mean size. Return whether it does."""
        shift = self._shift
        while self._shift < MAX_SHIFT and self._capacity_bytes / self.weight > MAX_CHUNKS * mean_slot_bytes:
            self._shift += 1
            self._set()
        return self._shift != shift

    def _set(self) -> None:
        self.weight = 1 << self._shift
        self.mask = (1 << min(self._shift, _BITS_OF_LAST_BYTE)) - 1
        self.match = self._salt & self.mask
        self._second_mask = (1 << max(self._shift - _BITS_OF_LAST_BYTE, 0)) - 1


def bits_of(key: ChunkKey) -> int:
    """Return the bits of a key that decide whether it is in a sample."""
    return key[-1] | (key[-2] << _BITS_OF_LAST_BYTE if len(key) > 1 else 0)

"""The identity of a block: a fingerprint of 64 bits of all tokens up to its end, computed for many blocks together.

The fingerprint of n tokens is `sum(token[i] * key[i]) + n * LENGTH_KEY` modulo 2**64 (multilinear hashing: Lemire and
Kaser, "Strongly universal string hashing is fast", 2014). Even positions have pseudo-random odd keys; the key of an odd
position is that of its neighbour, shifted by 32 bits, so one multiplication serves two tokens. Prefixes of one
length that differ in one token never meet; others do once in 2**64, or in 2**32 if they differ at odd positions alone.
A running sum gives every block's fingerprint; to go on from there only the sum and the number of tokens are needed.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.columns import column

MASK = (1 << 64) - 1
LENGTH_KEY = 0x9E3779B97F4A7C15  # odd, so that a prefix and the same with zeros after it differ
FIRST_KEYS = 1 << 12
KEYS_PER_STEP = 1 << 16
MAX_KEYS = 1 << 22  # the most tokens of a session
MAX_SAMPLED_TOGETHER = 1 << 16  # so that the hashes take little memory


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a bijection of 64 bits in which every bit depends on all (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class PositionKeys:
    """A key for each position of a token, 12 bytes each, made when needed. Every process has the same keys."""

    def __init__(self) -> None:
        self._num_made = 0
        self._keys = column(np.uint64, MAX_KEYS)
        self._pair_keys = column(np.uint64, MAX_KEYS // 2)
        self._make(FIRST_KEYS)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys."""
        return self._num_made * (self._keys.itemsize + self._pair_keys.itemsize // 2)

    def making(self, count: int) -> Iterator[None]:
        """Make keys up to this number, in steps of a millisecond."""
        while self._num_made < min(count, MAX_KEYS):
            self._make(min(count, self._num_made + KEYS_PER_STEP))
            yield

    def between(self, first: int, last: int) -> NDArray[np.uint64]:
        """Return the keys of positions `first` to `last - 1`: a view."""
        if last > self._num_made:
            self._make(last)
        return self._keys[first:last]

    def of_pairs_between(self, first: int, last: int) -> NDArray[np.uint64]:
        """Return the keys of pairs of tokens, each pair read as one integer. Both positions are even. A view."""
        if last > self._num_made:
            self._make(last)
        return self._pair_keys[first // 2 : last // 2]

    def _make(self, count: int) -> None:
        """Make keys, at least up to this number."""
        first = self._num_made // 2
        last = min(-(-count // FIRST_KEYS) * FIRST_KEYS, MAX_KEYS) // 2
        numbers = np.arange(first + 1, last + 1, dtype=np.uint64)
        pair_keys = mix64(numbers * np.uint64(LENGTH_KEY)) | np.uint64(1)
        self._pair_keys[first:last] = pair_keys
        self._keys[2 * first : 2 * last : 2] = pair_keys
        self._keys[2 * first + 1 : 2 * last : 2] = pair_keys << np.uint64(32)
        self._num_made = 2 * last


def fingerprints(
    keys: PositionKeys,
    total: int,
    first: int,
    token_ids: NDArray[np.uint32],
    block_size: int,
    out: NDArray[np.uint64],
) -> int:
    """Write the fingerprint of each block that becomes full into `out`, and return the new total.

    `total` is the fingerprint of the `first` tokens before `token_ids`. `out` has an element for each block that ends
    within `token_ids`.
    """
    start = 0  # of the blocks that are here as a whole
    if len(out):
        start = -first % block_size
        whole = out
        if start:
            total = _extend(keys, total, first, token_ids[:start])
            out[0] = total
            whole = out[1:]
        if len(whole):
            end = start + len(whole) * block_size
            _sum_blocks(keys, first + start, token_ids[start:end], block_size, whole)
            whole += np.uint64(block_size * LENGTH_KEY & MASK)
            whole[0] = (whole.item(0) + total) & MASK
            np.add.accumulate(whole, out=whole)
            total = whole.item(-1)
            start = end
    return _extend(keys, total, first + start, token_ids[start:]) if start < len(token_ids) else total


def _extend(keys: PositionKeys, total: int, first: int, token_ids: NDArray[np.uint32]) -> int:
    count = len(token_ids)
    return (total + int(np.vecdot(token_ids, keys.between(first, first + count))) + count * LENGTH_KEY) & MASK


def _sum_blocks(
    keys: PositionKeys, first: int, token_ids: NDArray[np.uint32], block_size: int, out: NDArray[np.uint64]
) -> None:
    """Write the sum of each block's tokens times keys. `first` is a multiple of `block_size`."""
    last = first + len(token_ids)
    if block_size % 2 == 0 and sys.byteorder == "little":
        pairs, shape = np.ascontiguousarray(token_ids).view(np.uint64), (len(out), block_size // 2)
        np.vecdot(pairs.reshape(shape), keys.of_pairs_between(first, last).reshape(shape), out=out)
    else:
        shape = (len(out), block_size)
        np.vecdot(token_ids.reshape(shape), keys.between(first, last).reshape(shape), out=out)


def sampled(instance_id: str, first: int, last: int, rate: float) -> NDArray[np.bool_]:
    """Return which of the blocks `first` to `last - 1` are sampled: a share of `rate`, the same in every process."""
    are = np.ones(last - first, dtype=np.bool_)
    if rate < 1.0:
        name = instance_id.encode()
        seed = np.uint64(zlib.crc32(name) << 32 | zlib.adler32(name))
        limit = np.uint64(int(rate * 2**64))
        for at in range(first, last, MAX_SAMPLED_TOGETHER):
            block_ids = np.arange(at, min(at + MAX_SAMPLED_TOGETHER, last), dtype=np.uint64)
            are[at - first : at - first + len(block_ids)] = mix64(block_ids ^ seed) < limit
    return are

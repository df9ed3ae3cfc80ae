"""What a block holds, as 64 bits: a fingerprint of all tokens up to its end, found for many blocks at once.

The fingerprint of n tokens is ``sum(token[i] * key[i]) + n * LENGTH_KEY`` modulo 2**64, with a pseudo-random odd key per
position (multilinear hashing: Lemire and Kaser, "Strongly universal string hashing is fast", 2014). Two prefixes that
differ by chance meet once in 2**64, and even if all their tokens differ by multiples of 2**20 once in 2**44. A running
sum gives every block's fingerprint, and to go on from there nothing but the sum and the number of tokens is needed.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

MASK = (1 << 64) - 1
LENGTH_KEY = 0x9E3779B97F4A7C15  # odd, so that a prefix and the same with zeros after it differ
FIRST_KEYS = 1 << 14


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits in which every bit depends on all (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class PositionKeys:
    """A key for each position of a token; made as they are needed, 8 bytes each, the same in every process."""

    def __init__(self) -> None:
        self._keys = _keys(FIRST_KEYS)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys."""
        return self._keys.nbytes

    def between(self, first: int, last: int) -> NDArray[np.uint64]:
        """The keys of positions ``first`` to ``last - 1``: a view."""
        if last > len(self._keys):
            self._keys = _keys(1 << (last - 1).bit_length())
        return self._keys[first:last]


def _keys(count: int) -> NDArray[np.uint64]:
    return mix64(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(LENGTH_KEY)) | np.uint64(1)


def fingerprints(
    keys: PositionKeys,
    total: int,
    first: int,
    token_ids: NDArray[np.uint32],
    block_size: int,
    out: NDArray[np.uint64],
) -> int:
    """Write the fingerprint of each block that becomes full into ``out`` and return the new total.

    ``total`` is the fingerprint of the ``first`` tokens before ``token_ids``; ``out`` has one element per block that
    ends within ``token_ids``.
    """
    num_tokens = len(token_ids)
    key = keys.between(first, first + num_tokens)
    start = 0  # of the blocks that are here as a whole
    if len(out):
        start = -first % block_size
        whole = out
        if start:
            total = _extend(total, token_ids[:start], key[:start])
            out[0] = total
            whole = out[1:]
        if len(whole):
            end = start + len(whole) * block_size
            shape = (len(whole), block_size)
            np.einsum("ij,ij->i", token_ids[start:end].reshape(shape), key[start:end].reshape(shape), out=whole)
            whole += np.uint64(block_size * LENGTH_KEY & MASK)
            whole[0] = (int(whole[0]) + total) & MASK
            np.cumsum(whole, out=whole)
            total = int(whole[-1])
            start = end
    return _extend(total, token_ids[start:], key[start:]) if start < num_tokens else total


def _extend(total: int, token_ids: NDArray[np.uint32], key: NDArray[np.uint64]) -> int:
    return (total + int(np.einsum("i,i->", token_ids, key)) + len(token_ids) * LENGTH_KEY) & MASK


def sampled(instance_id: str, first: int, last: int, rate: float) -> NDArray[np.bool_]:
    """Which of the blocks ``first`` to ``last - 1`` are sampled: a share of ``rate``, the same ones in every process."""
    if rate >= 1.0:
        return np.ones(last - first, dtype=np.bool_)
    name = instance_id.encode(errors="surrogatepass")
    seed = zlib.crc32(name) << 32 | zlib.adler32(name)
    return mix64(mix64(np.arange(first, last, dtype=np.uint64) ^ np.uint64(seed))) < np.uint64(int(rate * 2**64))

"""kvsum64: the checksum of a chunk's bytes.

For the little-endian 64-bit words `w` of a chunk, and `i` the number of each,

    kvsum64 = sum((lo32(w) + lo32(i*K)) * (hi32(w) + hi32(i*K)) + w)    K = 0x9E3779B97F4A7C15

The inner additions are modulo 2**32, the outer ones modulo 2**64. Bytes behind the last whole word count as a word
that is filled up with zeros. Each word's part depends on its place. So the parts of any pieces of a chunk, computed in
any order by any thread, add up to the checksum of the whole.

It finds accidents: flipped bits, lost pages, swapped pieces, bytes of another chunk. It is no protection against
somebody who chooses the bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WORD_BYTES = 8
MULTIPLIER = 0x9E3779B97F4A7C15
_SLICE_BYTES = 1 << 18  # at a time, so that the arrays in between stay in a core's cache
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def kvsum64(data: NDArray[np.uint8] | memoryview, offset_bytes: int = 0) -> int:
    """Return the part of a chunk's checksum that `data` adds, whose first byte is `offset_bytes` into the chunk.

    `offset_bytes` is a multiple of 8. So is the size of `data`, unless it ends where the chunk ends.

    Raises: ValueError.
    """
    if offset_bytes % WORD_BYTES:
        raise ValueError(f"offset_bytes {offset_bytes} is not a multiple of {WORD_BYTES}")
    array = np.frombuffer(data, dtype=np.uint8)
    total = 0
    for begin in range(0, array.size, _SLICE_BYTES):
        some = array[begin : begin + _SLICE_BYTES]
        if some.size % WORD_BYTES:
            some = np.concatenate([some, np.zeros(-some.size % WORD_BYTES, np.uint8)])
        total += _of_words(some.view("<u8"), (offset_bytes + begin) // WORD_BYTES)
    return total % 2**64


def _of_words(words: NDArray[np.uint64], first: int) -> int:
    places = np.arange(first, first + words.size, dtype=np.uint64) * np.uint64(MULTIPLIER)
    low = (words + places) & _LOW  # the carry out of the lower half is cut off
    high = ((words >> _HALF) + (places >> _HALF)) & _LOW
    return int((low * high + words).sum(dtype=np.uint64))

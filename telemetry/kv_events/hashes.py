"""The hashes of blocks, as readers get them: the low 64 bits as a number, or all bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

PackedHashes: TypeAlias = bytes | tuple[bytes, ...]
"""The hashes of some blocks: as numbers, 8 bytes each, big-endian, or as they are."""

INT_BYTES = 8


def pack(hashes: Iterable[bytes], *, as_ints: bool) -> PackedHashes:
    """Pack hashes. As numbers, only the last 8 bytes of each are kept, as vLLM does."""
    if as_ints:
        return b"".join([each[-INT_BYTES:].rjust(INT_BYTES, b"\0") for each in hashes])
    return tuple(hashes)


def unpack(packed: PackedHashes) -> Sequence[int] | Sequence[bytes]:
    """Return the hashes as readers get them."""
    if isinstance(packed, tuple):
        return packed
    numbers: list[int] = np.frombuffer(packed, dtype=">u8").tolist()
    return numbers

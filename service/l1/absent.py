"""The absent tokens of a chunk's groups, packed into the 16 bytes that a record has for them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

PACKED_BYTES = 16
_RUN = struct.Struct("<I")
_MAX_RUNS = PACKED_BYTES // _RUN.size  # of groups whose absent tokens are equal
_MAX_RUN_GROUPS = 255
_MAX_RUN_TOKENS = (1 << 24) - 1


def pack_absent(absent_tokens: Sequence[int]) -> bytes:
    """Return runs of groups with equal numbers, each as a number of groups (8 bits) and of tokens (24 bits).

    Raises: ValueError: there are too many runs.
    """
    runs = [(tokens, len(list(same))) for tokens, same in itertools.groupby(absent_tokens)]
    if len(runs) > _MAX_RUNS or any(
        tokens > _MAX_RUN_TOKENS or num_groups > _MAX_RUN_GROUPS for tokens, num_groups in runs
    ):
        raise ValueError("the absent tokens of so many groups do not fit a record")
    return b"".join(_RUN.pack(num_groups << 24 | tokens) for tokens, num_groups in runs)


def unpack_absent(packed: bytes) -> tuple[int, ...]:
    """Return what `pack_absent` packed, filled up with zero bytes."""
    absent: tuple[int, ...] = ()
    for (run,) in _RUN.iter_unpack(packed):
        absent += (run & _MAX_RUN_TOKENS,) * (run >> 24)
    return absent

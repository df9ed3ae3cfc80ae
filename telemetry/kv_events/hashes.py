"""Hashes and token ids in the form that readers get: the elements of a MessagePack array, made once for a chunk.

All hashes of a chunk are encoded when it gets its name, so that an event is its parts in a row. A number always has its
longest form, as MessagePack allows: so the elements of a chunk can be cut out of those of a whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

INT_BYTES = 8
TOKEN_BYTES = 5
_UINT64, _BIN8, _UINT32 = b"\xcf", b"\xc4", 0xCE
_TOKEN = np.dtype([("type", "u1"), ("value", ">u4")])
assert _TOKEN.itemsize == TOKEN_BYTES


def encode_hashes(hashes: Iterable[bytes], *, as_ints: bool) -> bytes:
    """Encode hashes: at least one, each of at most 255 bytes. As numbers, only the last 8 bytes count, as in vLLM."""
    if as_ints:
        low = [each[-INT_BYTES:] for each in hashes]
        elements = _UINT64 + _UINT64.join(low)
        if len(elements) < len(low) * (1 + INT_BYTES):  # some are shorter
            elements = _UINT64 + _UINT64.join([each.rjust(INT_BYTES, b"\0") for each in low])
        return elements
    return b"".join([_BIN8 + bytes((len(each),)) + each for each in hashes])


def encode_tokens(token_ids: npt.NDArray[np.uint32]) -> bytes:
    """Encode token ids, shape [num_tokens], in `TOKEN_BYTES` bytes each."""
    tokens = np.empty(len(token_ids), dtype=_TOKEN)
    tokens["type"], tokens["value"] = _UINT32, token_ids
    return tokens.tobytes()


def array(num_elements: int, elements: bytes) -> bytes:
    """Return the array of encoded elements."""
    if num_elements < 16:
        return bytes((0x90 | num_elements,)) + elements
    if num_elements < 1 << 16:
        return b"\xdc" + num_elements.to_bytes(2, "big") + elements
    return b"\xdd" + num_elements.to_bytes(4, "big") + elements

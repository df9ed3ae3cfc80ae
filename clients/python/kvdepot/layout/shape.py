"""The sizes of a paged KV buffer of any layout."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvdepot.errors import invalid

_DTYPE = re.compile(r"(?:bfloat|float|int|uint)(\d+)(?:_[a-z0-9]+?)?(?:_x(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """The sizes of one group of layers on one rank.

    `head_size` counts elements of one head of one token in K or V alone, or of the latent, which has one head.
    `dtype` is named as torch does: `bfloat16`, `float8_e4m3fn`.

    Sizes are at least 1, and an element has a whole number of bytes.

    Raises: InvalidArgument.
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_heads: int = 1
    head_size: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_blocks", "block_size", "num_heads", "head_size"):
            size = getattr(self, name)
            if not hasattr(size, "__index__") or size < 1:
                raise invalid(name, f"must be an integer of at least 1, not {size!r}")
        dtype_bytes(self.dtype)

    @property
    def element_bytes(self) -> int:
        """Bytes of one element."""
        return dtype_bytes(self.dtype)


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one element of a dtype. Its name must show a whole number of them.

    Raises: InvalidArgument.
    """
    named = _DTYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    bits = int(named[1]) * int(named[2] or 1) if named else 0
    if bits == 0 or bits % 8:
        raise invalid("dtype", f"{dtype!r} is not the name of a dtype with a whole number of bytes, as in 'bfloat16'")
    return bits // 8

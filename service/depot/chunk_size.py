"""The chunk size of an attachment: what its engine wants, or one near the depot's that its blocks divide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kernels.geometry import Group
from service.errors import ChunkSizeMismatch
from service.l1.keys import MAX_CHUNK_SIZE


def chunk_size_for(groups: Sequence[Group], wanted: int, usual: int) -> int:
    """Return the tokens of a chunk of these groups: `wanted`, or if that is 0, the multiple next to `usual`.

    With states it is the least common multiple, because a match may end with any state that ends a chunk.
    Each group's `block_size` divides it. Of two multiples as near as each other it is the smaller one. It does not
    depend on other attachments, so engines with the same blocks always have the same chunk size.

    Raises: ChunkSizeMismatch.
    """
    step = math.lcm(*(group.block_size for group in groups))
    if wanted % step:
        number, group = next((number, each) for number, each in enumerate(groups) if wanted % each.block_size)
        raise ChunkSizeMismatch(
            f"chunk_size {wanted} is not a multiple of group {number}'s block_size {group.block_size}"
        )
    if step > MAX_CHUNK_SIZE:
        raise ChunkSizeMismatch(
            f"the least common multiple of the groups' block sizes is {step}, more than the {MAX_CHUNK_SIZE} of a chunk"
        )
    if wanted:
        return wanted
    if any(group.holds_state for group in groups):
        return step
    below = usual // step * step
    return below if below > 0 and usual - below <= below + step - usual else below + step

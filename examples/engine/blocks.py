"""The block pool of the engine: it counts references, and a block without one is free."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks by their ids, from 0. Implements `kvdepot.connector.BlockReferences`.

    Requests hold references, and so do loads and stores that run. The block that is free for the longest time is the
    next one to be taken.
    """

    null_block_id = -1  # of layers with a window; here each block is a real one

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._references = Counter[int]()

    def __repr__(self) -> str:
        return f"<BlockPool {self.num_free}/{self.num_blocks} blocks free>"

    @property
    def num_free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Return free blocks, with a reference to each."""
        block_ids = [self._free.popleft() for _ in range(count)]
        self.hold(block_ids)
        return block_ids

    def hold(self, block_ids: Sequence[int]) -> None:
        """Take one more reference to each block."""
        self._references.update(block_ids)

    def release(self, block_ids: Iterable[int]) -> None:
        """Give a reference to each block back."""
        for block_id in block_ids:
            self._references[block_id] -= 1
            if not self._references[block_id]:
                del self._references[block_id]
                self._free.append(block_id)

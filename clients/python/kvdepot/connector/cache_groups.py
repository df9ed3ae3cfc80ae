"""The KV cache groups of an engine. Each keeps a part of a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """A group of layers that share a block table. All fields count tokens.

    Full attention reads all of a prefix. Layers with a `window` read that many tokens before the next one. Layers
    with a `local_chunk` read the tokens since its last multiple. Layers that hold a state (`holds_state`: Mamba, gated
    delta nets) read the last block of a prefix only: it has the state after all of the prefix's tokens. The engine puts
    its null block in the place of earlier blocks.
    """

    block_size: int
    window: int | None = None
    local_chunk: int | None = None
    holds_state: bool = field(default=False, repr=False)

    @property
    def is_full(self) -> bool:
        """Whether all of a prefix is kept."""
        return self.window is None and self.local_chunk is None and not self.holds_state

    def first_needed(self, end: int) -> int:
        """Return the first token of the first block that the engine needs to go on after `end` tokens."""
        skipped = 0
        if self.holds_state:
            skipped = max(0, end - 1)
        elif self.window is not None:
            skipped = max(0, end - self.window)
        elif self.local_chunk is not None:
            skipped = end // self.local_chunk * self.local_chunk
        return skipped // self.block_size * self.block_size


def reported_group(groups: Sequence[CacheGroup]) -> int | None:
    """Return the index of the group to report to the depot. None: there is no such group.

    It is the first group of full attention, because its tables lose no block.
    """
    return next((index for index, group in enumerate(groups) if group.is_full), None)

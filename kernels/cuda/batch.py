"""What is to be moved in which direction, and the events that tell when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kernels.block_copy import MovedBlocks
from kernels.cuda.runtime import Event
from kernels.cuda.tables import BlockTables


class Direction(StrEnum):
    """L0 to L1, L1 to L0."""

    STORE = "store"
    RETRIEVE = "retrieve"


@dataclass(frozen=True, slots=True, eq=False)
class Moves:
    """Moves as arrays: where their chunks are, ``[moves]``, and the blocks of each group."""

    l1_offsets: NDArray[np.int64]
    blocks: Sequence[MovedBlocks]

    def __len__(self) -> int:
        return len(self.l1_offsets)

    def __getitem__(self, part: slice) -> Moves:
        first, end, _ = part.indices(len(self))
        return Moves(self.l1_offsets[part], [blocks.of_moves(first, end) for blocks in self.blocks])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Moves whose block ids lie in one table. Steps address the moves by their number in it, from 0."""

    l1_offsets: NDArray[np.int64]
    blocks: Sequence[BlockTables]


StepEvents = Sequence[tuple[Event, Event]]
"""For each kind of work that a step has: when it begins, when it ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Events around one kind of a step's work. ``begin`` is None if its start is not measured."""

    begin: Event | None
    end: Event

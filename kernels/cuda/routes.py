"""Routes: how the bytes of a step get from an engine's blocks to L1, or back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.runtime import Event
from kernels.cuda.steps import Part, Step
from kernels.cuda.tables import BlockTables, Table
from kernels.moves import MovedBlocks
from kernels.step_time import StepName


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
    """Moves whose blocks are in one table; steps count them from 0."""

    l1_offsets: NDArray[np.int64]
    blocks: Sequence[BlockTables]


StepEvents = Sequence[tuple[Event, Event]]
"""For each kind of work that a step has: when it begins, when it ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Events around one kind of a step's work; nobody asks when it began if ``begin`` is None."""

    begin: Event | None
    end: Event


class Route(Protocol):
    """One direction of one attachment. What is issued is done in the order in which it was issued."""

    @property
    def works(self) -> Sequence[StepName]:
        """The kinds of work that each step has, in the order in which they are done."""

    @property
    def parts(self) -> Sequence[Part]:
        """A chunk, as it is cut into steps."""

    @property
    def chunks_per_step(self) -> int:
        """How many chunks go into a step: 1 if a chunk has several parts."""

    def load(self, moves: Moves, table: Table) -> Batch:
        """Write the blocks of the moves into a table, and start its upload."""

    def issue(self, step: Step, batch: Batch, marks: Sequence[Marks]) -> None:
        """Start to copy the step, with marks for each of `works`.

        The end of the last one happens when the step and all that was issued before is copied.
        """

    def mark(self, event: Event) -> None:
        """Have an event happen before whatever is issued from now on."""

    def drain(self) -> None:
        """Wait until all that was issued is done. If this raises, it never will be, and nothing is touched."""

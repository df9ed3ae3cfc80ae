"""What a transfer's time went into."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Waiting for the engine's event and for a turn; the kernels; the copy engine, or the host's threads."""

    WAIT = "wait"
    GATHER = "gather"
    SCATTER = "scatter"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One kind of a transfer's work, from its first start to its last end; ``start_seconds`` is since the start.

    Kinds overlap where they are a pipeline, and work of one kind may pause while other transfers have their turn.
    """

    name: str
    start_seconds: float
    duration_seconds: float

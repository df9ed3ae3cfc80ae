"""Who is told of the reuses and evictions of sampled blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds


@dataclass(frozen=True, slots=True)
class Source:
    """Whose blocks they are: the attributes of every observation."""

    instance_id: str
    model_name: str


class Observer(Protocol):
    """Takes observations; those of one source come in the order in which they happened, kind by kind."""

    def evicted(
        self,
        source: Source,
        block_ids: BlockIds,
        lifetime_seconds: NDArray[np.float64],
        idle_seconds: NDArray[np.float64],
    ) -> None:
        """Contents were replaced: how long they were there, and how long nobody had held them, 0 if somebody did."""

    def reused(self, source: Source, block_ids: BlockIds, gap_seconds: NDArray[np.float64]) -> None:
        """Contents that nobody held are held again: how long after their last access."""

    def forgotten(self, source: Source) -> None:
        """The instance is gone."""

"""The receiver of observations of sampled blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from telemetry.l0.blocks import BlockIds


@dataclass(frozen=True, slots=True)
class Source:
    """The attributes of every observation. `instance_id` has the tenant in front, if there is one."""

    instance_id: str
    model_name: str


class Observer(Protocol):
    """A receiver of observations. Those of one source and kind come in the order in which they happened."""

    def evicted(
        self,
        source: Source,
        block_ids: BlockIds,
        lifetime_seconds: NDArray[np.float64],
        idle_seconds: NDArray[np.float64],
    ) -> None:
        """Take evictions: how long the contents existed, and how long they had no owner (0 if they had one)."""

    def reused(self, source: Source, block_ids: BlockIds, gap_seconds: NDArray[np.float64]) -> None:
        """Take reuses of released contents: how long after their last access they have an owner again."""

    def forgotten(self, source: Source) -> None:
        """Note that the instance is gone."""

"""The lifecycle of the engines' blocks as metrics: histograms of sampled blocks, and counts of all blocks."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from telemetry.delivery import Subscriber
from telemetry.l0.blocks import BlockIds
from telemetry.l0.lifecycle import L0Lifecycle
from telemetry.l0.observer import Observer, Source
from telemetry.metrics import definitions
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars


class BlockHistograms(Observer):
    """Histograms of sampled blocks, by instance and by the exported name of the model."""

    def __init__(self, exported: Callable[[str], str]) -> None:
        self._exported = exported
        self._lifetime = Histogram(definitions.BLOCK_LIFETIME)
        self._idle_before_evict = Histogram(definitions.BLOCK_IDLE)
        self._reuse_gap = Histogram(definitions.BLOCK_REUSE_GAP)
        self.all = (self._lifetime, self._idle_before_evict, self._reuse_gap)

    def evicted(
        self,
        source: Source,
        block_ids: BlockIds,
        lifetime_seconds: NDArray[np.float64],
        idle_seconds: NDArray[np.float64],
    ) -> None:
        """Observe replaced contents."""
        attributes = self._attributes(source)
        self._lifetime.observe_many(attributes, lifetime_seconds)
        self._idle_before_evict.observe_many(attributes, idle_seconds)

    def reused(self, source: Source, block_ids: BlockIds, gap_seconds: NDArray[np.float64]) -> None:
        """Observe contents that have an owner again."""
        self._reuse_gap.observe_many(self._attributes(source), gap_seconds)

    def forgotten(self, source: Source) -> None:
        """Let other instances replace the points of the instance."""
        for histogram in self.all:
            histogram.forget(self._attributes(source))

    def _attributes(self, source: Source) -> Attributes:
        return source.instance_id, self._exported(source.model_name)


class L0Subscriber(L0Lifecycle, Subscriber):
    """A subscriber to reports of block allocations. It counts all blocks and observes a share of `sample_rate`.

    The instance and the id of a block decide whether it is sampled, so the same blocks are sampled after a restart.
    `exported` returns the exported name of a model.
    """

    name = "l0"

    def __init__(
        self, *, sample_rate: float, session_idle_timeout_seconds: float, exported: Callable[[str], str] = str
    ) -> None:
        self._exported = exported
        histograms = BlockHistograms(exported)
        super().__init__(histograms, sample_rate=sample_rate, session_idle_timeout_seconds=session_idle_timeout_seconds)
        self.histograms = histograms.all

    def read(self) -> Scalars:
        """Return the state of the blocks of each instance, and what happened to them so far."""
        self.expire(monotonic())  # releases blocks even if no event comes
        counts = {(name, self._exported(each.model_name)): each for name, each in self.counts().items()}
        return {
            definitions.BLOCKS: {
                (*attributes, state): num_blocks
                for attributes, each in counts.items()
                for state, num_blocks in (("owned", each.owned), ("released", each.released), ("unknown", each.unknown))
            },
            definitions.BLOCK_ALLOCATIONS: {attributes: each.allocations for attributes, each in counts.items()},
            definitions.BLOCK_REUSES: {attributes: each.reuses for attributes, each in counts.items()},
            definitions.BLOCK_SHARES: {attributes: each.shares for attributes, each in counts.items()},
            definitions.BLOCK_EVICTIONS: {attributes: each.evictions for attributes, each in counts.items()},
            definitions.MALFORMED_RECORDS: {(): self.num_malformed},
        }

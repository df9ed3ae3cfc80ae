"""The lives of the engines' blocks, as histograms of sampled blocks and counts of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from telemetry.delivery import Subscriber
from telemetry.events import Event
from telemetry.l0.blocks import BlockIds
from telemetry.l0.lifecycle import L0Counts, L0Lifecycle
from telemetry.l0.observer import Observer, Source
from telemetry.metrics.array_histogram import LIFECYCLE_BOUNDARIES_SECONDS, Histogram


class BlockHistograms(Observer):
    """What is observed of blocks, by instance and by the name under which its model is exported."""

    def __init__(self, exported: Callable[[str], str]) -> None:
        self._exported = exported
        self.lifetime = _histogram("lifetime", "From the allocation of a block to the loss of its contents.")
        self.idle_before_evict = _histogram(
            "idle_before_evict", "From the release of a block by its last session to the loss of its contents."
        )
        self.reuse_gap = _histogram("reuse_gap", "From the last access of a block to its reuse, once released.")

    @property
    def all(self) -> tuple[Histogram, ...]:
        """To be exported."""
        return self.lifetime, self.idle_before_evict, self.reuse_gap

    def evicted(
        self,
        source: Source,
        block_ids: BlockIds,
        lifetime_seconds: NDArray[np.float64],
        idle_seconds: NDArray[np.float64],
    ) -> None:
        """Contents were replaced."""
        attributes = self._attributes(source)
        self.lifetime.observe(attributes, lifetime_seconds)
        self.idle_before_evict.observe(attributes, idle_seconds)

    def reused(self, source: Source, block_ids: BlockIds, gap_seconds: NDArray[np.float64]) -> None:
        """Contents that nobody held are held again."""
        self.reuse_gap.observe(self._attributes(source), gap_seconds)

    def forgotten(self, source: Source) -> None:
        """The instance is gone: its points may go when their room is needed."""
        for histogram in self.all:
            histogram.forget(self._attributes(source))

    def _attributes(self, source: Source) -> tuple[str, str]:
        return source.instance_id, self._exported(source.model_name)


class L0Subscriber(Subscriber):
    """Follows reports of block allocations; counts all blocks, and observes a share of ``sample_rate`` of them.

    Which blocks are sampled is decided by their instance and id alone, so the same ones are after a restart.
    ``exported`` gives a model the name that it has in the histograms.
    """

    name = "l0"

    def __init__(
        self, *, sample_rate: float, session_idle_timeout_seconds: float, exported: Callable[[str], str] = str
    ) -> None:
        self._histograms = BlockHistograms(exported)
        self._lifecycle = L0Lifecycle(
            self._histograms,
            sample_rate=sample_rate,
            session_idle_timeout_seconds=session_idle_timeout_seconds,
        )

    def __repr__(self) -> str:
        return f"<L0Subscriber {self._lifecycle!r}>"

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """To be exported."""
        return self._histograms.all

    @property
    def num_malformed(self) -> int:
        """Records that could not be followed, or not to their end."""
        return self._lifecycle.num_malformed

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered of blocks and tokens."""
        return self._lifecycle.nbytes

    def handle(self, batch: Sequence[Event]) -> None:
        """Follow the blocks."""
        self._lifecycle.handle(batch)

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """The same, a record or a few milliseconds a step."""
        return self._lifecycle.steps(batch)

    def expire(self, now: float) -> None:
        """End the sessions that were quiet for too long; ``now`` in seconds of the monotonic clock.

        For whoever reads the counts: a depot that hears nothing releases blocks, too.
        """
        self._lifecycle.expire(now)

    def counts(self) -> Mapping[str, L0Counts]:
        """Of each instance by its id, also of some that went."""
        return self._lifecycle.counts()


def _histogram(name: str, description: str) -> Histogram:
    return Histogram(
        f"kvdepot.l0.block.{name}", "s", description, ("instance_id", "model_name"), LIFECYCLE_BOUNDARIES_SECONDS
    )

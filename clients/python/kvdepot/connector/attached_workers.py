"""The workers that are attached to a depot, and its chunk size, as they report both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# Requests wait for the workers' first reports for at most this long.
FIRST_REPORT_SECONDS = 5.0


class AttachedWorkers:
    """The last report of each worker.

    `chunk_size` is the depot's if all workers are attached and agree; else it is 0, and no depot is used.
    `wants_token_ids` says whether the depot wants tokens with stores. `clock` is in seconds.
    """

    def __init__(self, num_workers: int, hash_block_size: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.chunk_size = 0
        self.wants_token_ids = False
        self._num_workers = num_workers
        self._hash_block_size = hash_block_size
        self._chunk_sizes: dict[int, int] = {}
        self._first_reports_until: float | None = None

    def update(self, chunk_sizes: Mapping[int, int]) -> None:
        """Take reports by worker index."""
        self._chunk_sizes.update(chunk_sizes)
        sizes = set(self._chunk_sizes.values())
        chunk_size = sizes.pop() if len(self._chunk_sizes) == self._num_workers and len(sizes) == 1 else 0
        if chunk_size % self._hash_block_size:
            logger.error(
                "the depot is not used: its chunks of %d tokens are no multiple of the engine's block hashes of %d",
                chunk_size,
                self._hash_block_size,
            )
            chunk_size = 0
        self.chunk_size = chunk_size

    @property
    def num_attached(self) -> int:
        """How many workers are attached, as far as they have reported."""
        return sum(size > 0 for size in self._chunk_sizes.values())

    def await_first_reports(self) -> bool:
        """Return whether to wait for a worker that never reported. Workers report in the engine's first step.

        The first call starts the clock, because an engine may need minutes until its first step.
        """
        if len(self._chunk_sizes) == self._num_workers:
            return False
        now = self._clock()
        if self._first_reports_until is None:
            self._first_reports_until = now + FIRST_REPORT_SECONDS
        return now < self._first_reports_until

"""The results of one worker: written on the event loop, read on the engine's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kvdepot.connector.commands import TransferOutcome, WorkerReport

Item = TypeVar("Item")


class WorkerResults:
    """The results that the engine's thread has not taken.

    A failed or partial transfer is marked as such before it is marked as done, and before it ends as a load. Its
    outcome is recorded before both. `take_report` reads in the reverse order, and the engine calls `take_loaded` before
    `take_invalid_blocks`. So it never treats a failed transfer as a good one.
    """

    def __init__(self, worker_index: int) -> None:
        self._worker_index = worker_index
        self._chunk_size = 0
        self._wants_token_ids = False
        self._num_changes = 1
        self._num_reported_changes = 0
        self._done: deque[int] = deque()
        self._failed: deque[int] = deque()
        self._partial: deque[tuple[int, int]] = deque()
        self._invalid_blocks: deque[int] = deque()
        self._ended_loads: deque[tuple[str, bool]] = deque()
        self._outcomes: deque[tuple[int, TransferOutcome]] = deque()

    def attachment_changed(self, chunk_size: int, *, wants_token_ids: bool) -> None:
        """Report the depot's chunk size, or 0 for a lost attachment, and whether the depot wants tokens.

        A new attachment to a depot with the same chunk size is reported too: that depot may be an empty one.
        """
        self._chunk_size, self._wants_token_ids = chunk_size, wants_token_ids
        self._num_changes += 1  # last: the engine's thread reads it first

    def record(self, transfer_id: int, outcome: TransferOutcome) -> None:
        """Report what became of a transfer, for statistics."""
        self._outcomes.append((transfer_id, outcome))

    def mark_failed(self, transfer_id: int) -> None:
        """Report that a transfer has not loaded or stored all of its tokens."""
        self._failed.append(transfer_id)

    def mark_partial(self, transfer_id: int, num_tokens: int, invalid_blocks: Iterable[int]) -> None:
        """Report that a load has loaded its first tokens only, and that these blocks do not have theirs."""
        self._partial.append((transfer_id, num_tokens))
        self._invalid_blocks.extend(invalid_blocks)

    def mark_done(self, transfer_ids: Iterable[int]) -> None:
        """Report that the depot does not touch the blocks of these transfers again."""
        self._done.extend(transfer_ids)

    def end_load(self, request_id: str, *, failed: bool) -> None:
        """Report that a request's load has ended."""
        self._ended_loads.append((request_id, failed))

    def take_loaded(self) -> tuple[set[str], set[str]]:
        """Return two sets: requests whose load ended since the last call, and the failed ones among them."""
        ended = list(_drain(self._ended_loads))
        return {request_id for request_id, _ in ended}, {request_id for request_id, failed in ended if failed}

    def take_invalid_blocks(self) -> set[int]:
        """Return the blocks that partial loads did not fill, of all loads that `take_loaded` has returned."""
        return set(_drain(self._invalid_blocks))

    def take_report(self) -> WorkerReport | None:
        """Return the report about the time since the last call. None: nothing happened."""
        report = WorkerReport()
        report.done.update(_drain(self._done))
        report.failed.update(_drain(self._failed))
        report.partial.update(_drain(self._partial))
        report.outcomes.update(_drain(self._outcomes))
        if (num_changes := self._num_changes) != self._num_reported_changes:
            self._num_reported_changes = num_changes
            report.chunk_sizes[self._worker_index] = self._chunk_size
            report.wants_token_ids = self._wants_token_ids
        return report if report != WorkerReport() else None


def _drain(items: deque[Item]) -> Iterator[Item]:
    while items:
        yield items.popleft()

"""The certain ends of transfers that go over several connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class TransferEnds:
    """Counts the ends that each transfer waits for, on the event loop. `on_done` takes those that wait for none."""

    def __init__(self, on_done: Callable[[Iterable[int]], None]) -> None:
        self._on_done = on_done
        self._left: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<TransferEnds of {len(self._left)} transfers>"

    def begin(self, transfer_id: int, num_parts: int) -> None:
        """Wait for so many ends of a transfer."""
        self._left[transfer_id] = num_parts

    def end(self, transfer_ids: Iterable[int]) -> None:
        """Count one end of each transfer."""
        done = []
        for transfer_id in transfer_ids:
            self._left[transfer_id] -= 1
            if not self._left[transfer_id]:
                del self._left[transfer_id]
                done.append(transfer_id)
        if done:
            self._on_done(done)

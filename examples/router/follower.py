"""What a reader of one depot's batches does next: apply one, ask for those that it missed, or begin anew. No I/O.

A publisher numbers its batches. A batch may be lost, and a publisher that starts again counts from 0 again. Both show
in a replay that begins with the last batch that was applied: it comes back as it was, or the picture is out of date.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

MAX_HELD_BATCHES = 1_000
"""The batches that may wait for the end of a replay. More of them are a gap, which the next replay closes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it came. `sequence` is its number, `topic` names the depot and the model."""

    sequence: int
    topic: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class BeginAnew:
    """Forget all that the depot told. The batches that follow tell it again."""


Step = Batch | BeginAnew


class Follower:
    """The place of a reader in the batches of one depot.

    `needs_replay`: a batch is missing, or nothing is known yet. `is_asking`: a replay has begun, and not ended.
    """

    def __init__(self) -> None:
        self._last: Batch | None = None
        self._held: deque[Batch] = deque(maxlen=MAX_HELD_BATCHES)
        self._is_compared = False
        self._is_stale = False
        self.needs_replay = True
        self.is_asking = False

    def __repr__(self) -> str:
        return f"<Follower, {self._next} is next{', asking' if self.is_asking else ''}>"

    @property
    def _next(self) -> int:
        return 0 if self._last is None else self._last.sequence + 1

    def live(self, batch: Batch) -> Iterator[Step]:
        """Take a batch that was published just now."""
        if self.is_asking:
            self._held.append(batch)
        elif batch.sequence == self._next and not self.needs_replay:
            self._last = batch
            yield batch
        elif batch.sequence >= self._next:
            self.needs_replay = True
        # A lower number is a batch that a replay brought before, or a publisher that has started again. The next
        # replay tells which.

    def ask(self) -> int:
        """Begin a replay. Return the number to ask for: of the last applied batch, so that it can be compared."""
        self.is_asking = True
        self._is_compared = self._last is None
        self._is_stale = False
        return max(0, self._next - 1)

    def replayed(self, batch: Batch) -> Iterator[Step]:
        """Take a batch of the replay."""
        if not self._is_compared:
            self._is_compared = True
            self._is_stale = batch != self._last
        elif not self._is_stale:
            if self._last is not None and batch.sequence != self._next:
                yield BeginAnew()  # the publisher no longer has all of them
            self._last = batch
            yield batch

    def end(self) -> Iterator[Step]:
        """Take the end of the replay, and the batches that were published meanwhile."""
        self.is_asking = False
        self.needs_replay = self._is_stale or not self._is_compared
        if self.needs_replay:
            yield from self._begin_anew()
        held = list(self._held)
        self._held.clear()
        for batch in held:
            yield from self.live(batch)

    def disconnect(self) -> None:
        """Trust no number until the last batch has been compared: the publisher may start again."""
        self.is_asking = False
        self.needs_replay = True
        self._held.clear()

    def _begin_anew(self) -> Iterator[Step]:
        self._last = None
        yield BeginAnew()

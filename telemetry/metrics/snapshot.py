"""All figures, read on the event loop, where they change, for exporters that ask in threads of theirs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from telemetry.metrics.array_histogram import HistogramPoint
from telemetry.metrics.metric import Attributes, Metric, ReadableHistogram

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0  # with an event loop that is busy

Scalars = Mapping[Metric, Mapping[Attributes, float]]
HistogramReading = tuple[ReadableHistogram, Sequence[HistogramPoint]]


@dataclass(slots=True)
class _Snapshot:
    scalars: dict[Metric, Mapping[Attributes, float]] = field(default_factory=dict)
    histograms: list[HistogramReading] = field(default_factory=list)
    asked_for: set[object] = field(default_factory=set)


class Snapshots:
    """One snapshot for each export: it is taken anew when something is asked for that it has told already.

    An event loop that does not answer in `PATIENCE_SECONDS` holds up no export: the last snapshot is told again.

    Made on the event loop; `scalars` and `histograms` are for any other thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reads: list[Callable[[], Scalars]] = []
        self._histograms: list[ReadableHistogram] = []
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None

    def add(self, read: Callable[[], Scalars]) -> None:
        """Tell what ``read`` tells, too; it is called on the event loop."""
        self._reads.append(read)

    def add_histograms(self, histograms: Iterable[ReadableHistogram]) -> None:
        """Tell these, too; they are read on the event loop."""
        self._histograms += histograms

    def scalars(self, metric: Metric) -> Mapping[Attributes, float]:
        """The figures of a counter or a gauge."""
        return self._current(metric).scalars.get(metric, {})

    def histograms(self) -> Sequence[HistogramReading]:
        """The figures of all histograms."""
        return self._current("histograms").histograms

    def _current(self, asked_for: object) -> _Snapshot:
        with self._lock:
            snapshot = self._snapshot
            if snapshot is None or asked_for in snapshot.asked_for:
                snapshot = self._snapshot = self._read_on_loop()
            snapshot.asked_for.add(asked_for)
            return snapshot

    def _read_on_loop(self) -> _Snapshot:
        answer: Future[_Snapshot] = Future()
        try:
            self._loop.call_soon_threadsafe(self._answer, answer)
            return answer.result(PATIENCE_SECONDS)
        except (TimeoutError, RuntimeError):  # busy, or closed
            answer.cancel()
            last = self._snapshot or _Snapshot()
            last.asked_for.clear()
            return last

    def _answer(self, answer: Future[_Snapshot]) -> None:
        if answer.set_running_or_notify_cancel():
            answer.set_result(self._read())

    def _read(self) -> _Snapshot:
        snapshot = _Snapshot()
        for read in self._reads:
            try:
                snapshot.scalars.update(read())
            except Exception:
                logger.exception("ReadingFailed %r", read)
        for histogram in self._histograms:
            try:
                snapshot.histograms.append((histogram, histogram.points()))
            except Exception:
                logger.exception("ReadingFailed %r", histogram)
        return snapshot

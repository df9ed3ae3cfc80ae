"""All metrics at one moment, read on the event loop, for exporters in threads of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from telemetry.metrics.instruments import Histogram, HistogramPoint
from telemetry.metrics.metric import Attributes, Metric

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1.0  # for an event loop that is busy

Scalars = Mapping[Metric, Mapping[Attributes, float]]
"""The values of counters and gauges."""
Points = Sequence[tuple[Metric, Sequence[HistogramPoint]]]
"""The points of histograms."""


@dataclass(slots=True)
class _Snapshot:
    scalars: dict[Metric, Mapping[Attributes, float]] = field(default_factory=dict)
    points: list[tuple[Metric, Sequence[HistogramPoint]]] = field(default_factory=list)
    asked_for: set[object] = field(default_factory=set)


class Snapshots:
    """One snapshot for each export. A new one is taken when an exporter asks for the same values a second time.

    If the event loop does not answer within `TIMEOUT_SECONDS`, the exporter gets the last snapshot again.

    Made on the event loop. `scalars` and `points` are for any other thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reads: list[Callable[[], Scalars]] = []
        self._histograms: list[Histogram] = []
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None

    def add(self, read: Callable[[], Scalars]) -> None:
        """Add the values that `read` returns. It is called on the event loop."""
        self._reads.append(read)

    def add_histograms(self, histograms: Iterable[Histogram]) -> None:
        """Add histograms. They are read on the event loop."""
        self._histograms += histograms

    def scalars(self, metric: Metric) -> Mapping[Attributes, float]:
        """Return the values of a counter or a gauge."""
        return self._current(metric).scalars.get(metric, {})

    def points(self) -> Points:
        """Return the points of all histograms."""
        return self._current("points").points

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
            return answer.result(TIMEOUT_SECONDS)
        except (TimeoutError, RuntimeError):  # the loop is busy, or closed
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
                snapshot.points.append((histogram.metric, histogram.points()))
            except Exception:
                logger.exception("ReadingFailed %r", histogram)
        return snapshot

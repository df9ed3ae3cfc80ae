"""Metrics of the server itself: its event queue, its event loop, its process."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
from pathlib import Path
from time import monotonic

from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES
from telemetry.metrics import definitions
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.snapshot import Scalars

LAG_PERIOD_SECONDS = 0.1
_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_START_TIME_FIELD = 21
_NUM_THREADS_FIELD = 19


def read_bus(bus: EventBus) -> Scalars:
    """Return what the bus did so far, and how many events wait."""
    stats = bus.stats()
    # 0 for a type that was never dropped: a counter that begins with its first drop shows no increase at that drop.
    dropped = {**dict.fromkeys(EVENT_TYPES, 0), **stats.num_dropped_by_type}
    errors = stats.num_errors_by_subscriber
    return {
        definitions.QUEUE_DEPTH: {(): stats.depth},
        definitions.QUEUE_CAPACITY: {(): stats.capacity},
        definitions.QUEUE_LAG: {(): stats.drain_lag_seconds},
        definitions.EVENTS_PUBLISHED: {(): stats.num_published},
        definitions.EVENTS_DELIVERED: {(): stats.num_delivered},
        definitions.EVENTS_DROPPED: {(event_type,): num_events for event_type, num_events in dropped.items()},
        definitions.SUBSCRIBER_ERRORS: {(name,): num_errors for name, num_errors in errors.items()},
    }


def read_process() -> Scalars:
    """Return what the process uses of the machine, by OpenTelemetry's names. Takes some 50 µs, and reads no disk."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # The second field is the command's name in parentheses, and may hold anything.
    fields = ["", "", *Path("/proc/self/stat").read_text().rpartition(")")[2].split()]
    start_seconds = int(fields[_START_TIME_FIELD]) / _TICKS_PER_SECOND
    num_resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    generations = enumerate(gc.get_stats())
    return {
        definitions.PROCESS_CPU_TIME: {("user",): usage.ru_utime, ("system",): usage.ru_stime},
        definitions.PROCESS_MEMORY_USAGE: {(): num_resident_pages * _PAGE_BYTES},
        definitions.PROCESS_OPEN_FILES: {(): _num_open_files()},
        definitions.PROCESS_THREADS: {(): int(fields[_NUM_THREADS_FIELD])},
        definitions.PROCESS_UPTIME: {(): time.clock_gettime(time.CLOCK_BOOTTIME) - start_seconds},
        definitions.GC_COLLECTIONS: {(str(number),): stats["collections"] for number, stats in generations},
    }


def _num_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # one is that of the folder itself


class LoopLag:
    """The lag of the event loop: how late it runs a timer. One long delay is one value."""

    def __init__(self) -> None:
        self.lag = Histogram(definitions.EVENT_LOOP_LAG)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._due = monotonic() + LAG_PERIOD_SECONDS
        self._timer = asyncio.get_running_loop().call_later(LAG_PERIOD_SECONDS, self._observe)

    def stop(self) -> None:
        """End. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _observe(self) -> None:
        self.lag.observe((), max(0.0, monotonic() - self._due))
        self.start()

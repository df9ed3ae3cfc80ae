"""The process itself: what it takes of the machine, from /proc, by the names of OpenTelemetry's conventions."""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path

from telemetry.metrics import definitions as definitions
from telemetry.metrics.snapshot import Scalars

_PAGE_BYTES = resource.getpagesize()
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_START_TIME_FIELD = 21
_NUM_THREADS_FIELD = 19


def read_process() -> Scalars:
    """Some 50 µs; those files are made when they are read, no disk has to do with it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # The second field is the command's name in parentheses, and may hold anything.
    fields = ["", "", *Path("/proc/self/stat").read_text().rpartition(")")[2].split()]
    start_seconds = int(fields[_START_TIME_FIELD]) / _TICKS_PER_SECOND
    num_resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        definitions.PROCESS_CPU_TIME: {("user",): usage.ru_utime, ("system",): usage.ru_stime},
        definitions.PROCESS_MEMORY_USAGE: {(): num_resident_pages * _PAGE_BYTES},
        definitions.PROCESS_OPEN_FILES: {(): _num_open_files()},
        definitions.PROCESS_THREADS: {(): int(fields[_NUM_THREADS_FIELD])},
        definitions.PROCESS_UPTIME: {(): time.clock_gettime(time.CLOCK_BOOTTIME) - start_seconds},
        definitions.GC_COLLECTIONS: {
            (str(generation),): stats["collections"] for generation, stats in enumerate(gc.get_stats())
        },
    }


def _num_open_files() -> int:
    with os.scandir("/proc/self/fd") as files:
        return sum(1 for _ in files) - 1  # that of the folder itself

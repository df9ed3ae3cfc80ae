"""Metrics are read on the event loop, once for each export, and an export has a bounded wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from telemetry.metrics import definitions
from telemetry.metrics.instruments import Histogram
from telemetry.metrics.prometheus import HistogramCollector, Page
from telemetry.metrics.snapshot import Scalars, Snapshots

T = TypeVar("T")


class Source:
    """Counts how often it is read, and in which thread."""

    def __init__(self) -> None:
        self.num_reads = 0
        self.threads: set[int] = set()

    def read(self) -> Scalars:
        self.num_reads += 1
        self.threads.add(threading.get_ident())
        return {definitions.LEASES_LIVE: {(): self.num_reads}, definitions.SESSIONS_LIVE: {(): self.num_reads}}


async def elsewhere(ask: Callable[[], T]) -> T:
    return await asyncio.to_thread(ask)


async def test_one_export_is_one_reading_on_the_loop() -> None:
    snapshots, source = Snapshots(), Source()
    snapshots.add(source.read)

    def export() -> list[float]:
        values = [snapshots.scalars(metric)[()] for metric in (definitions.LEASES_LIVE, definitions.SESSIONS_LIVE)]
        snapshots.points()
        return values

    assert [await elsewhere(export) for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]
    assert source.threads == {threading.get_ident()}


async def test_a_source_that_raises_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    snapshots, source = Snapshots(), Source()

    def fail() -> Scalars:
        raise RuntimeError("no")

    snapshots.add(fail)
    snapshots.add(source.read)
    assert await elsewhere(lambda: snapshots.scalars(definitions.LEASES_LIVE)) == {(): 1}
    assert "ReadingFailed" in caplog.text


async def test_a_loop_that_is_busy_leaves_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.metrics.snapshot.TIMEOUT_SECONDS", 0.05)
    snapshots, source = Snapshots(), Source()
    snapshots.add(source.read)
    values: list[float] = []

    def ask() -> None:
        values.extend(snapshots.scalars(definitions.LEASES_LIVE)[()] for _ in range(3))

    await elsewhere(lambda: snapshots.scalars(definitions.LEASES_LIVE))
    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        time.sleep(0.01)  # noqa: ASYNC251 - the loop is delayed up meanwhile
    assert values == [1, 1, 1]
    await asyncio.sleep(0)
    assert source.num_reads == 1, "a read without a waiting export is not made"
    assert await elsewhere(lambda: snapshots.scalars(definitions.LEASES_LIVE)) == {(): 2}


class BusyLoop:
    """A loop that never runs its callbacks."""

    def __init__(self) -> None:
        self.num_asked = 0

    def call_soon_threadsafe(self, *call: object) -> None:
        self.num_asked += 1


async def test_a_loop_that_is_busy_is_waited_for_once_for_each_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.metrics.snapshot.TIMEOUT_SECONDS", 0.001)
    snapshots, loop = Snapshots(), BusyLoop()
    monkeypatch.setattr(snapshots, "_loop", loop)
    for _ in range(2):
        assert [snapshots.scalars(metric) for metric in definitions.METRICS] == [{}] * len(definitions.METRICS)
    assert loop.num_asked == 2


class Slow(Collector):
    """Notes how many pages it is made for at once."""

    def __init__(self) -> None:
        self.num_running = self.most_running = 0
        self._lock = threading.Lock()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._lock:
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
        for number in range(20):
            time.sleep(0)  # lets go of the GIL
            yield GaugeMetricFamily(f"gauge_{number}", "One of many.", value=number)
        with self._lock:
            self.num_running -= 1


async def test_pages_are_made_one_at_a_time() -> None:
    page, slow = Page(), Slow()
    page.register(slow)
    pages = await asyncio.gather(*(elsewhere(lambda: generate_latest(page)) for _ in range(30)))
    assert len(set(pages)) == 1
    assert slow.most_running == 1


def test_a_loop_that_is_closed_leaves_the_last_reading() -> None:
    async def make() -> Snapshots:
        snapshots = Snapshots()
        snapshots.add(Source().read)
        await elsewhere(lambda: snapshots.scalars(definitions.LEASES_LIVE))
        return snapshots

    with asyncio.Runner() as runner:
        snapshots = runner.run(make())
    assert snapshots.scalars(definitions.LEASES_LIVE) == {(): 1}


async def test_buckets_of_the_page_are_cumulated() -> None:
    snapshots = Snapshots()
    lag = Histogram(definitions.EVENT_LOOP_LAG)
    snapshots.add_histograms([lag])
    page = Page()
    page.register(HistogramCollector(snapshots))
    for value in (0.0004, 0.0005, 0.3, 100.0):
        lag.observe((), value)
    lines = (await elsewhere(lambda: generate_latest(page))).decode().splitlines()
    name = "kvdepot_event_loop_lag_seconds"
    assert lines[:2] == [f"# HELP {name} {definitions.EVENT_LOOP_LAG.description}", f"# TYPE {name} histogram"]
    buckets = {line.split('"')[1]: float(line.split()[1]) for line in lines if line.startswith(f"{name}_bucket")}
    assert [buckets[end] for end in ("0.0005", "0.001", "0.25", "0.5", "5.0", "+Inf")] == [2, 2, 2, 3, 3, 4]
    assert f"{name}_count 4.0" in lines
    assert f"{name}_sum 100.3009" in lines

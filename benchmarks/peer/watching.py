"""``python -m benchmarks.peer.watching``: both sides' event buses and L0 subscribers, in the peer's environment.

One process measures both, so that both have the same interpreter and the same numpy. It says one line of JSON.
"""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from typing import Any

from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import EventBus as PeerBus
from lmcache.v1.mp_observability.event_bus import EventBusConfig

from benchmarks import bus, l0
from benchmarks.figures import Figure, Goal
from benchmarks.peer import answering
from telemetry.bus import EventBus
from telemetry.l0.subscriber import L0Subscriber

ROUNDS = 3
RECORD_BLOCKS = 264
BASELINE = "LMCache"


def subscribers() -> list[Figure]:
    """Measure blocks a second, and the memory of each block."""
    warm_up, measured = l0.events(RECORD_BLOCKS)
    measured = measured[: 2 * l0.PEER_BLOCKS // RECORD_BLOCKS]
    num_blocks = l0.count_blocks(measured)
    translated = [l0.translated(events) for events in (warm_up, measured)]
    for event in chain(*translated):
        event.timestamp += 1.0  # its subscriber takes a time of 0 for none, and then the clock's
    figures: list[Figure] = []
    for sample_rate in l0.SAMPLE_RATES:
        rates: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            rates.append(num_blocks / l0.seconds_of(ours(sample_rate), warm_up, measured) / 1e6)
            theirs.append(num_blocks / l0.seconds_of(peers(sample_rate), *translated) / 1e6)
        what = f"L0 subscriber, records of {RECORD_BLOCKS} blocks, sample rate {sample_rate:g}"
        figures += [
            _figure(what, "M blocks/s", rates, theirs, l0.GOALS[sample_rate]),
            _figure(
                "… memory per block that was seen",
                "bytes",
                [_bytes_per_block(ours(sample_rate), warm_up)],
                [_bytes_per_block(peers(sample_rate), translated[0])],
            ),
        ]
    return figures


def ours(sample_rate: float) -> l0.Handle:
    """Return a subscriber that has seen nothing."""
    return L0Subscriber(sample_rate=sample_rate, session_idle_timeout_seconds=600.0).handle


def peers(sample_rate: float) -> l0.Handle:
    """Return the peer's subscriber."""
    handle = l0.peer(sample_rate)
    if handle is None:
        raise ImportError("lmcache's L0 subscriber can't be imported")
    return handle


def _bytes_per_block(handle: l0.Handle, events: Sequence[Any]) -> float:
    """Measure the allocated bytes that stay when every block was seen."""
    tracemalloc.start()
    l0.seconds_of(handle, events, ())
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return num_bytes / l0.NUM_BLOCK_IDS


def buses() -> list[Figure]:
    """Measure the time of a publish, and events a second to a subscriber that does nothing."""
    published: list[float] = []
    published_theirs: list[float] = []
    delivered: dict[int, tuple[list[float], list[float]]] = {threads: ([], []) for threads in bus.THREADS}
    for _ in range(ROUNDS):
        published.append(_published(EventBus([bus.Nothing()], capacity=bus.EVENTS).publish, bus.event) / 1e6)
        published_theirs.append(_published(_peer_bus(bus.EVENTS).publish, _peer_event) / 1e6)
        for threads, (rates, theirs) in delivered.items():
            rates.append(asyncio.run(_delivered(threads)) / 1e6)
            theirs.append(_delivered_theirs(threads) / 1e6)
    return [
        _figure("event bus: made and published", "M events/s", published, published_theirs),
        *(
            _figure(f"event bus: made, published, delivered, {threads} threads", "M events/s", *rates)
            for threads, rates in delivered.items()
        ),
    ]


def _published(publish: Callable[[Any], object], make: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    for _ in range(bus.EVENTS):
        publish(make())
    return bus.EVENTS / (time.perf_counter() - begin)


async def _delivered(num_threads: int) -> float:
    """Measure kvdepot's bus."""
    depot_bus = EventBus([bus.Nothing()], capacity=bus.EVENTS * num_threads)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(depot_bus.run())
        begin = time.perf_counter()
        await asyncio.to_thread(_publish_from, num_threads, depot_bus.publish, bus.event)
        await depot_bus.stop()
    num_delivered = depot_bus.stats().num_delivered
    return _rate(num_delivered, num_threads, begin)


def _delivered_theirs(num_threads: int) -> float:
    """Measure the peer's bus."""
    num_delivered = 0

    def count(event: Event) -> None:
        nonlocal num_delivered
        num_delivered += 1

    peer_bus = _peer_bus(bus.EVENTS * num_threads)
    peer_bus.subscribe(EventType.MP_LOOKUP_PREFETCH_END, count)
    peer_bus.start()
    begin = time.perf_counter()
    _publish_from(num_threads, peer_bus.publish, _peer_event)
    peer_bus.stop()
    return _rate(num_delivered, num_threads, begin)


def _publish_from(num_threads: int, publish: Callable[[Any], object], make: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=_published, args=(publish, make)) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _rate(num_delivered: int, num_threads: int, begin: float) -> float:
    seconds = time.perf_counter() - begin
    if num_delivered != bus.EVENTS * num_threads:
        raise RuntimeError(f"{num_delivered} of {bus.EVENTS * num_threads} events were delivered")
    return num_delivered / seconds


def _peer_bus(capacity: int) -> PeerBus:
    return PeerBus(EventBusConfig(enabled=True, max_queue_size=capacity))


def _peer_event() -> Event:
    """Return the peer's event of a lookup, the counterpart of `bus.event`."""
    return Event(
        event_type=EventType.MP_LOOKUP_PREFETCH_END,
        session_id="request-1",
        metadata={
            "found_count": 16,
            "requested_tokens": 4_096,
            "hit_tokens": 4_096,
            "model_name": "m",
            "cache_salt": "",
        },
    )


def _figure(what: str, unit: str, values: list[float], theirs: list[float], goal: Goal | None = None) -> Figure:
    return Figure(what=what, unit=unit, values=values, baseline=BASELINE, baseline_values=theirs, goal=goal)


def main() -> None:
    """Answer once with the peer's version and the figures."""
    output = answering.own_output()
    figures = [asdict(figure) for figure in [*subscribers(), *buses()]]
    answering.say(output, {"version": version("lmcache"), "figures": figures})


if __name__ == "__main__":
    main()

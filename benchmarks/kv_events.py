"""KV events: how many a depot publishes in a second without a loss, and what they cost a Lookup."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import numpy as np
import zmq

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from benchmarks.probing import Case, measure_cases
from kvdepot.cli.processes import child
from telemetry.bus import EventBus
from telemetry.events import ChunksEvicted, ChunksStored
from telemetry.kv_events.batches import Batches
from telemetry.kv_events.hashes import array, encode_hashes, encode_tokens
from telemetry.kv_events.named_chunk import Medium, NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.publisher import KvEventPublisher
from telemetry.kv_events.ring import Ring
from telemetry.kv_events.sockets import Sockets
from telemetry.kv_events.wire import Wire

ROUNDS = 5
CHUNKS = 4_000
CHUNKS_PER_EVENT = 16
BLOCKS_PER_CHUNK = 16
BLOCK_TOKENS = 16
BLOCK_EVENTS_PER_SECOND = 100_000
NONE = np.array([], dtype=np.float64)


class _Event(msgspec.Struct):
    """What is counted of an event."""

    block_hashes: list[int] = []


class _Batch(msgspec.Struct, array_like=True):
    time: float
    events: list[_Event]
    rank: int | None


async def measure() -> list[Figure]:
    """Measure the rate in this process, then lookups of a depot that publishes beside one that does not."""
    measured = [await _rate(number) for number in range(ROUNDS)]
    figures = [
        Figure(
            what="out of the bus and received: blocks stored and removed, none lost",
            unit="/s",
            values=[rate for rate, _ in measured],
            goal=Goal(at_least=BLOCK_EVENTS_PER_SECOND),
        ),
        Figure(what="… CPU of the event loop, a block", unit="µs", values=[cpu for _, cpu in measured]),
    ]
    half = BLOCK_EVENTS_PER_SECOND // 2
    load = f"{half:,} blocks/s stored and as many evicted"
    with ExitStack() as stack:
        off = stack.enter_context(servers.depot("--l1-size", "4MiB")).unix
        address = f"ipc://{stack.enter_context(tempfile.TemporaryDirectory())}/events"
        on = stack.enter_context(servers.depot("--l1-size", "4MiB", "--kv-events", address)).unix
        # In a process of its own: a thread would hold up the lookups that are measured here.
        reader = stack.enter_context(child("the reader", "-m", "benchmarks.receiving_events", address))
        busy = [
            stack.enter_context(servers.stopped("the engine", "benchmarks.storing_blocks", depot, str(half)))
            for depot in (off, on)
        ]
        cases = (
            Case(name=load, address=off, busy=busy[0]),
            Case(name=f"{load}, with KV events", address=on, busy=busy[1], p99_goal=Goal(at_most=1.1)),
        )
        figures += await measure_cases(cases)
        assert next(reader.lines()).strip() == "received", "no KV event was received"
    return figures


async def _rate(seed: int) -> tuple[float, float]:
    """Return block events a second, from their publication on the bus to the reader's last batch, and µs of CPU."""
    sockets = Sockets("tcp://127.0.0.1:0", "", Ring(1 << 20), max_waiting_batches=100_000)
    names, in_l1 = Names(1 << 30), set[bytes]()
    publisher = KvEventPublisher(
        names, lambda key: Medium.L1 if key in in_l1 else 0, Batches(Wire(as_maps=True), sockets)
    )
    chunks = [_chunk(seed, number) for number in range(CHUNKS)]
    bus = EventBus([publisher])
    with _reader(sockets.address) as received:
        sockets.start(lambda: publisher.tell_again("reader"))
        tasks = [asyncio.create_task(each) for each in (bus.run(), publisher.run())]
        await asyncio.sleep(0.2)  # the reader subscribes
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        for stores in (True, False):
            for first in range(0, CHUNKS, CHUNKS_PER_EVENT):
                some = chunks[first : first + CHUNKS_PER_EVENT]
                keys = tuple(chunk.name for chunk in some)
                if stores:
                    in_l1.update(keys)
                    for chunk in some:
                        names.add(chunk, b"family", [chunk.name])
                    bus.publish(
                        ChunksStored(model_name="m", rank=0, keys=keys, num_bytes=0, seconds_since_eviction=NONE)
                    )
                else:
                    in_l1.difference_update(keys)
                    bus.publish(
                        ChunksEvicted(
                            model_name="m", tier="l1", keys=keys, num_bytes=0, lifetime_seconds=NONE, idle_seconds=NONE
                        )
                    )
                await asyncio.sleep(0)
            while received[0] < CHUNKS * BLOCKS_PER_CHUNK * (1 if stores else 2):  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.001)
        seconds, cpu_seconds = time.perf_counter() - begin, time.thread_time() - cpu_begin
        assert not bus.stats().num_dropped_by_type and not publisher.num_retold["gap"]
        await bus.stop()
        tasks[1].cancel()
        await sockets.close()
    num_blocks = 2 * CHUNKS * BLOCKS_PER_CHUNK
    return num_blocks / seconds, cpu_seconds / num_blocks * 1e6


def _chunk(seed: int, number: int) -> NamedChunk:
    hashes = [f"{seed:8}{number:16}{block:8}".encode() for block in range(BLOCKS_PER_CHUNK)]
    tokens = np.arange(number, number + BLOCKS_PER_CHUNK * BLOCK_TOKENS, dtype=np.uint32)
    return NamedChunk(
        name=b"%d %d" % (seed, number),
        topic=b"kv@pod@model",
        parent_name=b"",
        parent_hash=None,
        block_hashes=array(BLOCKS_PER_CHUNK, encode_hashes(hashes, as_ints=True)),
        token_ids=array(len(tokens), encode_tokens(tokens)),
        block_size=BLOCK_TOKENS,
        num_blocks=BLOCKS_PER_CHUNK,
        adapter="",
        cache_salt="",
    )


@contextmanager
def _reader(address: str) -> Iterator[list[int]]:
    """Count the blocks of all events in a thread, in the first element of what this yields."""
    received, stop = [0], threading.Event()
    decode = msgspec.msgpack.Decoder(_Batch).decode
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVHWM, 0)
    subscriber.connect(address)
    subscriber.subscribe(b"")

    def read() -> None:
        while not stop.is_set():
            if subscriber.poll(50):
                _, _, payload = subscriber.recv_multipart()
                received[0] += sum(len(event.block_hashes) for event in decode(payload).events)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield received
    finally:
        stop.set()
        thread.join()
        context.destroy(linger=0)

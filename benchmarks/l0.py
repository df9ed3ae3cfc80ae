"""Blocks per second through the L0 subscriber, compared with the tokens' fingerprints alone and LMCache; its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.figures import Figure, Goal
from telemetry.delivery import Delivery, Subscriber
from telemetry.events import BlockAllocation, BlocksAllocated, Event, SessionEnded
from telemetry.l0.fingerprints import PositionKeys, fingerprints
from telemetry.l0.subscriber import L0Subscriber

NUM_BLOCK_IDS = 50_000
BLOCK_SIZE = 16
NUM_PREFIXES = 8  # system prompts: a quarter of each record's blocks
NUM_LIVE = 32  # sessions: one ends for each that begins
RECORD_BLOCKS = (16, 64, 264, 512)
SAMPLE_RATES = (1.0, 0.01)
MEASURED_BLOCKS = 1_000_000
GOALS = {1.0: Goal(at_least=2.0), 0.01: Goal(at_least=5.0)}  # relative to LMCache
ROUNDS = 3
PEER_BLOCKS = 100_000  # it takes 10 µs a block
MODEL_NAME = "bench"
INSTANCE_ID = "bench"

Handle = Callable[[Sequence[Any]], None]


def workload(record_blocks: int) -> Iterator[tuple[BlocksAllocated, SessionEnded | None]]:
    """Return prompts that begin with one of the prefixes, on its blocks, and go on with blocks and tokens of their own.

    The blocks of their own are the ones unused for longest, so that once all ids were seen each is an eviction.
    """
    tokens = np.random.default_rng(0)
    num_shared = record_blocks // 4
    num_own = record_blocks - num_shared
    prefix_tokens = tokens.integers(0, 128_000, (NUM_PREFIXES, num_shared * BLOCK_SIZE), dtype=np.uint32)
    prefix_ids = np.arange(NUM_PREFIXES * num_shared, dtype=np.uint32).reshape(NUM_PREFIXES, num_shared)
    own_ids = np.arange(prefix_ids.size, NUM_BLOCK_IDS, dtype=np.uint32)
    at, now, number = 0, 0.0, 0
    while True:
        if at + num_own > len(own_ids):
            at = 0
        own_tokens = tokens.integers(0, 128_000, num_own * BLOCK_SIZE, dtype=np.uint32)
        prefix = number % NUM_PREFIXES
        record = BlockAllocation(
            session_id=f"session-{number}",
            block_ids=np.concatenate([prefix_ids[prefix], own_ids[at : at + num_own]]),
            token_ids=np.concatenate([prefix_tokens[prefix], own_tokens]),
            reused_block_ids=np.zeros(0, dtype=np.uint32),
            resumed=False,
        )
        ended = None
        if number >= NUM_LIVE:
            ended = SessionEnded(
                monotonic=now,
                instance_id=INSTANCE_ID,
                session_id=f"session-{number - NUM_LIVE}",
                model_name=MODEL_NAME,
                reason="EndSession",
                duration_seconds=1.0,
                num_operations=0,
            )
        allocated = BlocksAllocated(
            monotonic=now,
            instance_id=INSTANCE_ID,
            model_name=MODEL_NAME,
            block_size=BLOCK_SIZE,
            records=(record,),
        )
        yield allocated, ended
        at, now, number = at + num_own, now + 0.01, number + 1


def measure() -> list[Figure]:
    """Measure two or three figures per length of records and sample rate, and one of the memory."""
    figures: list[Figure] = []
    for record_blocks in RECORD_BLOCKS:
        warm_up, measured = events(record_blocks)
        num_blocks = count_blocks(measured)
        for sample_rate in SAMPLE_RATES:
            what = f"L0: records of {record_blocks} blocks, sample rate {sample_rate:g}"
            rates, limits = [], []
            for _ in range(ROUNDS):
                subscriber = L0Subscriber(sample_rate=sample_rate, session_idle_timeout_seconds=600.0)
                rates.append(num_blocks / seconds_of(subscriber.handle, warm_up, measured) / 1e6)
                limits.append(num_blocks / seconds_of_fingerprints(measured) / 1e6)
            baseline = "fingerprints alone"
            figures.append(
                Figure(what=what, unit="M blocks/s", values=rates, baseline=baseline, baseline_values=limits)
            )
            if handle := peer(sample_rate):
                few = measured[: 2 * PEER_BLOCKS // record_blocks]
                peer_rate = count_blocks(few) / seconds_of(handle, translated(warm_up), translated(few)) / 1e6
                figures.append(
                    Figure(
                        what=what,
                        unit="M blocks/s",
                        values=rates,
                        baseline="LMCache",
                        baseline_values=[peer_rate] * ROUNDS,
                        goal=GOALS[sample_rate],
                    )
                )
    memory = [subscriber.nbytes / NUM_BLOCK_IDS]
    return [*figures, Figure(what="L0: memory per block", unit="bytes", values=memory, goal=Goal(at_most=64))]


def count_blocks(events: Sequence[Event]) -> int:
    """Count the blocks in all records."""
    return sum(len(event.records[0].block_ids) for event in events if isinstance(event, BlocksAllocated))


def events(record_blocks: int) -> tuple[Sequence[Event], Sequence[Event]]:
    """Return the events that make every id seen, then those that are measured."""
    pairs = workload(record_blocks)
    num_first = 2 * NUM_BLOCK_IDS // record_blocks + NUM_LIVE

    def flat(count: int) -> list[Event]:
        return [event for event in chain.from_iterable(islice(pairs, count)) if event is not None]

    return flat(num_first), flat(MEASURED_BLOCKS // record_blocks)


def seconds_of(handle: Handle, warm_up: Sequence[Any], measured: Sequence[Any]) -> float:
    """Measure the handler's time for ``measured``, in batches as large as the bus makes them."""
    delivery = Delivery([_Subscriber(handle)])
    for batch in (warm_up, measured):
        begin = time.perf_counter()
        at = 0
        while at < len(batch):
            end = at + delivery.batch_limit
            for _ in delivery.steps(batch[at:end]):
                pass
            at = end
        seconds = time.perf_counter() - begin
    if delivery.num_errors:
        raise RuntimeError(f"the subscriber failed {delivery.num_errors.total()} times")
    return seconds


def seconds_of_fingerprints(measured: Sequence[Event]) -> float:
    """Measure the time of hashing all tokens and nothing else."""
    keys = PositionKeys()
    begin = time.perf_counter()
    for event in measured:
        if isinstance(event, BlocksAllocated):
            (record,) = event.records
            fingerprints(keys, 0, 0, record.token_ids, BLOCK_SIZE, np.empty(len(record.block_ids), dtype=np.uint64))
    return time.perf_counter() - begin


class _Subscriber(Subscriber):
    """The subscriber that is measured, as the bus calls it."""

    name = "l0"

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def handle(self, batch: Sequence[Event]) -> None:
        """Pass the batch on."""
        self._handle(batch)


def peer(sample_rate: float) -> Handle | None:
    """Return LMCache's subscriber with the SDK's instruments, if both can be imported."""
    try:
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        module = import_module("lmcache.v1.mp_observability.subscribers.metrics.l0_lifecycle")
    except ImportError:
        return None
    metrics.set_meter_provider(MeterProvider(metric_readers=[InMemoryMetricReader()]))
    callbacks = module.L0LifecycleSubscriber(sample_rate=sample_rate).get_subscriptions()

    def handle(batch: Sequence[Any]) -> None:
        for event in batch:
            callbacks[event.event_type](event)

    return handle


def translated(events: Sequence[Event]) -> list[Any]:
    """Return the same records as LMCache's events."""
    module = import_module("lmcache.v1.mp_observability.event")

    def of(event: Event) -> Any:
        if isinstance(event, BlocksAllocated):
            records = [
                SimpleNamespace(
                    req_id=record.session_id,
                    new_block_ids=record.block_ids.tolist(),
                    new_token_ids=record.token_ids.tolist(),
                )
                for record in event.records
            ]
            facts = {"instance_id": 1, "model_name": event.model_name, "records": records}
            return module.Event(module.EventType.MP_VLLM_BLOCK_ALLOCATION, timestamp=event.monotonic, metadata=facts)
        facts = {"request_id": event.session_id}
        return module.Event(module.EventType.MP_VLLM_END_SESSION, timestamp=event.monotonic, metadata=facts)

    return [of(event) for event in events]

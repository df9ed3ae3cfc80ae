"""The L0 of all instances: their states, and the counts of those that are gone."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from telemetry.events import BlockAllocation, BlocksAllocated, Event, InstanceDetached, SessionEnded
from telemetry.l0.fingerprints import KEYS_PER_STEP, PositionKeys
from telemetry.l0.instance import InstanceBlocks
from telemetry.l0.observer import Observer, Source

# A node has a handful of GPUs. With more instances than this, the ends of some were not reported.
MAX_INSTANCES = 64
STEP_SECONDS = 0.002

L0_EVENTS = frozenset({BlocksAllocated, SessionEnded, InstanceDetached})


@dataclass(frozen=True, slots=True, kw_only=True)
class L0Counts:
    """What happened to the blocks of an instance so far, and their state."""

    model_name: str
    allocations: int = 0
    """Blocks that got new contents, or that the engine began to write."""
    reuses: int = 0
    shares: int = 0
    evictions: int = 0
    owned: int = 0
    """Blocks with an owner."""
    released: int = 0
    """Blocks without an owner, with contents that the next session could reuse."""
    unknown: int = 0
    """Blocks without an owner that were released before they were full."""


class L0Lifecycle:
    """The blocks of all instances. `observer` gets the observations of sampled ones.

    A session without a record for `session_idle_timeout_seconds` ends at that deadline, even if the end is noticed
    later. An instance that comes back with another model or block size is a new one: its blocks are forgotten.
    """

    def __init__(self, observer: Observer, *, sample_rate: float, session_idle_timeout_seconds: float) -> None:
        if not 0.0 <= sample_rate <= 1.0:
            raise ValueError(f"a sample rate of {sample_rate} is not a share")
        self._observer = observer
        self._sample_rate = sample_rate
        self._session_idle_timeout_seconds = session_idle_timeout_seconds
        self._instances: dict[str, InstanceBlocks] = {}  # least recently used first
        self._gone: dict[str, L0Counts] = {}  # the last MAX_INSTANCES: exporters read the last counts
        self._keys = PositionKeys()
        self._num_malformed = 0

    def __repr__(self) -> str:
        return f"<L0Lifecycle {len(self._instances)}/{MAX_INSTANCES} instances, {self.num_malformed} malformed>"

    @property
    def num_malformed(self) -> int:
        """Records that could not be followed to their end: ids or tokens that no block table can have."""
        return self._num_malformed + sum(instance.num_malformed for instance in self._instances.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        instances = sum(instance.nbytes for instance in self._instances.values())
        return instances + self._keys.nbytes

    def handle(self, batch: Sequence[Event]) -> None:
        """Follow the events in their order, instance by instance."""
        for _ in self.steps(batch):
            pass

    def steps(self, batch: Sequence[Event]) -> Iterator[None]:
        """Follow the events in steps of `STEP_SECONDS`, or of one record. After each step the counts are correct."""
        by_instance: dict[str, list[Event]] = {}
        for event in batch:
            if type(event) in L0_EVENTS:
                by_instance.setdefault(event.instance_label, []).append(event)
        for instance_id, events in by_instance.items():
            yield from self._follow(instance_id, events)  # an instance that fails is forgotten
        if batch:
            self.expire(batch[-1].monotonic)
            yield

    def expire(self, now: float) -> None:
        """End the sessions that were idle for too long. `now` is in seconds of the events' clock."""
        for instance in self._instances.values():
            instance.advance(now)

    def counts(self) -> Mapping[str, L0Counts]:
        """Return the counts by instance id. Instances that are gone stay for a while, with no blocks."""
        return self._gone | {name: _counts(instance) for name, instance in self._instances.items()}

    def _follow(self, instance_id: str, events: Iterable[Event]) -> Iterator[None]:
        """Follow events of one instance. An instance that fails is forgotten."""
        step_end = monotonic() + STEP_SECONDS
        instance = self._instances.pop(instance_id, None)
        for event, record in _one_by_one(events):
            if record is not None and len(record.token_ids) > KEYS_PER_STEP:
                num_tokens = instance.num_tokens_after(record) if instance is not None else len(record.token_ids)
                for _ in self._keys.making(num_tokens):
                    instance = yield from self._pause(instance_id, instance)
            match event:
                case BlocksAllocated():
                    instance = self._report(instance, event, record)
                case SessionEnded() if instance is not None:
                    instance.end_session(event.session_id, event.monotonic)
                case InstanceDetached() if instance is not None and event.num_ranks_left == 0:
                    self._forget(instance)
                    instance = None
            if monotonic() >= step_end:
                instance = yield from self._pause(instance_id, instance)
                step_end = monotonic() + STEP_SECONDS
        if instance is not None:
            instance.flush()
            self._instances[instance_id] = instance
            if len(self._instances) > MAX_INSTANCES:
                self._forget(self._instances.pop(self._longest_idle()))

    def _pause(self, instance_id: str, instance: InstanceBlocks | None) -> Generator[None, None, InstanceBlocks | None]:
        """End a step. Until the next one the instance is where others find it."""
        if instance is not None:
            instance.flush()
            self._instances[instance_id] = instance
        yield
        return self._instances.pop(instance_id, None)

    def _report(
        self, instance: InstanceBlocks | None, event: BlocksAllocated, record: BlockAllocation | None
    ) -> InstanceBlocks | None:
        if event.block_size < 1:
            self._num_malformed += record is not None
            return instance
        if instance is not None and (
            instance.source.model_name != event.model_name or instance.block_size != event.block_size
        ):
            self._forget(instance)
            instance = None
        if instance is None:
            instance = self._begin(Source(event.instance_label, event.model_name), event.block_size)
        if record is not None:
            instance.record(record, event.monotonic)
        return instance

    def _begin(self, source: Source, block_size: int) -> InstanceBlocks:
        instance = InstanceBlocks(
            source,
            block_size,
            sample_rate=self._sample_rate,
            session_idle_timeout_seconds=self._session_idle_timeout_seconds,
            observer=self._observer,
            keys=self._keys,
        )
        before = self._gone.pop(source.instance_id, None)
        if before is not None and before.model_name == source.model_name:
            instance.lifecycle.continue_from(before.allocations, before.reuses, before.shares, before.evictions)
        return instance

    def _forget(self, instance: InstanceBlocks) -> None:
        instance.flush()
        self._num_malformed += instance.num_malformed
        if len(self._gone) >= MAX_INSTANCES:
            del self._gone[next(iter(self._gone))]
        self._gone[instance.source.instance_id] = replace(_counts(instance), owned=0, released=0, unknown=0)
        self._observer.forgotten(instance.source)

    def _longest_idle(self) -> str:
        """Return the least recently used instance, of those without a live session if there are any."""
        idle = (name for name, instance in self._instances.items() if not instance.num_sessions)
        return next(idle, next(iter(self._instances)))


def _one_by_one(events: Iterable[Event]) -> Iterator[tuple[Event, BlockAllocation | None]]:
    """Yield each event, and a report once for each of its records."""
    for event in events:
        if isinstance(event, BlocksAllocated) and event.records:
            for record in event.records:
                yield event, record
        else:
            yield event, None


def _counts(instance: InstanceBlocks) -> L0Counts:
    lifecycle, blocks = instance.lifecycle, instance.blocks
    return L0Counts(
        model_name=instance.source.model_name,
        allocations=lifecycle.num_allocations,
        reuses=lifecycle.num_reuses,
        shares=lifecycle.num_shares,
        evictions=lifecycle.num_evictions,
        owned=blocks.num_owned(),
        released=blocks.num_released(),
        unknown=blocks.num_unknown(),
    )

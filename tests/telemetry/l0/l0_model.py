"""The rules of telemetry/l0/README.md in plain Python, with sets of owners, and the events to feed them with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry.events import BlockAllocation, BlocksAllocated, Event, InstanceDetached, SessionEnded
from telemetry.l0.observer import Observer, Source

Identity = tuple[Any, ...]
"""Of a full block: the block before it and its tokens."""


@dataclass
class Observations(Observer):
    """The observed evictions and reuses of one or more instances, in order, by source."""

    evictions: dict[Source, list[tuple[int, float, float]]] = field(default_factory=dict)
    reuses: dict[Source, list[tuple[int, float]]] = field(default_factory=dict)

    def evicted(self, source, block_ids, lifetime_seconds, idle_seconds):
        values = zip(block_ids.tolist(), lifetime_seconds.tolist(), idle_seconds.tolist(), strict=True)
        self.evictions.setdefault(source, []).extend(values)

    def reused(self, source, block_ids, gap_seconds):
        self.reuses.setdefault(source, []).extend(zip(block_ids.tolist(), gap_seconds.tolist(), strict=True))

    def forgotten(self, source):
        pass


@dataclass
class Block:
    identity: Identity | None = None
    alloc_time: float = 0.0
    last_access: float = 0.0
    release_time: float = 0.0
    owners: set[str] = field(default_factory=set)


@dataclass
class Session:
    last_time: float = 0.0
    table: list[int] = field(default_factory=list)
    num_full: int = 0
    """Blocks at the table's beginning that are full."""
    identity: Identity = ()
    """Of the last of them: the one before it, and its tokens."""
    open_tokens: list[int] = field(default_factory=list)


@dataclass
class Instance:
    source: Source
    block_size: int
    now: float = float("-inf")
    blocks: dict[int, Block] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("allocations", "reuses", "shares", "evictions"), 0)
    )


class Model:
    """Every block is sampled."""

    def __init__(self, *, session_idle_timeout_seconds: float) -> None:
        self.observations = Observations()
        self.num_malformed = 0
        self._timeout_seconds = session_idle_timeout_seconds
        self._instances: dict[str, Instance] = {}
        self._interned: dict[Identity, Identity] = {}
        self._counts: dict[str, tuple[str, dict[str, int]]] = {}

    def handle(self, batch: Sequence[Event]) -> None:
        for event in batch:
            match event:
                case BlocksAllocated():
                    self._report(event)
                case SessionEnded():
                    if instance := self._instances.get(event.instance_id):
                        self._tick(instance, event.monotonic)
                        self._end(instance, event.session_id, instance.now)
                case InstanceDetached() if event.num_ranks_left == 0:
                    self._instances.pop(event.instance_id, None)
        self.expire(batch[-1].monotonic)

    def expire(self, now: float) -> None:
        for instance in self._instances.values():
            self._tick(instance, now)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return counts as the fields of L0Counts, without the model's name."""
        counts = {}
        for name, (_, count) in self._counts.items():
            blocks = self._instances[name].blocks.values() if name in self._instances else ()
            free = [block for block in blocks if not block.owners]
            num_released = sum(block.identity is not None for block in free)
            states = {"owned": len(blocks) - len(free), "released": num_released, "unknown": len(free) - num_released}
            counts[name] = count | states
        return counts

    def _report(self, event: BlocksAllocated) -> None:
        source = Source(event.instance_id, event.model_name)
        instance = self._instances.get(event.instance_id)
        if instance is None or (instance.source, instance.block_size) != (source, event.block_size):
            instance = self._instances[event.instance_id] = Instance(source, event.block_size)
            model_name, counts = self._counts.get(event.instance_id, ("", {}))
            if model_name == event.model_name:
                instance.counts = counts
            self._counts[event.instance_id] = event.model_name, instance.counts
        for record in event.records:
            self._tick(instance, event.monotonic)
            self._record(instance, record)

    def _tick(self, instance: Instance, now: float) -> None:
        instance.now = max(instance.now, now)
        deadlines = [(s.last_time + self._timeout_seconds, name) for name, s in instance.sessions.items()]
        for deadline, name in sorted(deadlines):
            if deadline <= instance.now:
                self._end(instance, name, deadline)

    def _end(self, instance: Instance, session_id: str, now: float) -> None:
        session = instance.sessions.pop(session_id, Session())
        for block_id in set(session.table):
            block = instance.blocks[block_id]
            if session_id in block.owners:
                block.owners.remove(session_id)
                if not block.owners:
                    block.release_time = now

    def _record(self, instance: Instance, record: BlockAllocation) -> None:
        name, now = record.session_id, instance.now
        if record.resumed:
            self._end(instance, name, now)
        session = instance.sessions.setdefault(name, Session())
        session.last_time = now
        num_old = len(session.table)
        session.table += record.reused_block_ids.tolist() + record.block_ids.tolist()

        claimed = range(num_old, num_old + len(record.reused_block_ids))
        for i in claimed:
            self._claim(instance, session.table[i], name)

        tokens = record.token_ids.tolist()
        num_free = (len(session.table) - session.num_full) * instance.block_size - len(session.open_tokens)
        self.num_malformed += len(tokens) > num_free
        session.open_tokens += tokens[: max(0, num_free)]
        while len(session.open_tokens) >= instance.block_size:
            contents = tuple(session.open_tokens[: instance.block_size])
            del session.open_tokens[: instance.block_size]
            # one object per value, or comparing a long prefix would compare all of it
            identity = (id(session.identity), contents)
            session.identity = self._interned.setdefault(identity, (session.identity, contents))
            self._take(instance, session.table[session.num_full], name, session.identity)
            session.num_full += 1
        for i in range(max(num_old, session.num_full), len(session.table)):
            if i not in claimed:
                self._take(instance, session.table[i], name, None)

    def _claim(self, instance: Instance, block_id: int, name: str) -> None:
        block = instance.blocks.get(block_id)
        if block is None or (not block.owners and block.identity is None):
            self._begin(instance, block_id, name, None)
        else:
            self._access(instance, block_id, block, name)

    def _take(self, instance: Instance, block_id: int, name: str, identity: Identity | None) -> None:
        block = instance.blocks.get(block_id)
        if block is None:
            self._begin(instance, block_id, name, identity)
        elif block.identity is None:
            if name in block.owners:
                block.identity = identity
            else:
                self._begin(instance, block_id, name, identity)
        elif block.identity is identity:
            self._access(instance, block_id, block, name)
        else:
            idle = 0.0 if block.owners else instance.now - block.release_time
            lifetime = instance.now - block.alloc_time
            self.observations.evictions.setdefault(instance.source, []).append((block_id, lifetime, idle))
            instance.counts["evictions"] += 1
            self._begin(instance, block_id, name, identity)

    def _begin(self, instance: Instance, block_id: int, name: str, identity: Identity | None) -> None:
        instance.blocks[block_id] = Block(identity, instance.now, instance.now, owners={name})
        instance.counts["allocations"] += 1

    def _access(self, instance: Instance, block_id: int, block: Block, name: str) -> None:
        if name in block.owners:
            return
        if block.owners:
            instance.counts["shares"] += 1
        else:
            gap = instance.now - block.last_access
            self.observations.reuses.setdefault(instance.source, []).append((block_id, gap))
            instance.counts["reuses"] += 1
        block.owners.add(name)
        block.last_access = instance.now


def report(now: float, instance_id: str, *records: BlockAllocation, block_size: int, model_name: str = "m") -> Event:
    return BlocksAllocated(
        monotonic=now, instance_id=instance_id, model_name=model_name, block_size=block_size, records=records
    )


def record(
    session_id: str,
    block_ids: npt.ArrayLike,
    token_ids: npt.ArrayLike,
    reused_block_ids: npt.ArrayLike = (),
    resumed: bool = False,
) -> BlockAllocation:
    return BlockAllocation(
        session_id=session_id,
        block_ids=np.array(block_ids, dtype=np.uint32),
        token_ids=np.array(token_ids, dtype=np.uint32),
        reused_block_ids=np.array(reused_block_ids, dtype=np.uint32),
        resumed=resumed,
    )


def session_ended(now: float, instance_id: str, session_id: str) -> Event:
    return SessionEnded(
        monotonic=now,
        instance_id=instance_id,
        session_id=session_id,
        model_name="m",
        reason="EndSession",
        duration_seconds=1.0,
        num_operations=0,
    )


def detached(now: float, instance_id: str, num_ranks_left: int) -> Event:
    return InstanceDetached(
        monotonic=now, instance_id=instance_id, model_name="m", rank=0, reason="lost", num_ranks_left=num_ranks_left
    )

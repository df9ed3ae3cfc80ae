"""Batches of KV events: the events of one topic after the other, each batch with the next number."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from telemetry.kv_events.named_chunk import MEDIUM_NAMES, EventType, Medium, NamedChunk

if TYPE_CHECKING:  # it needs a package that a depot without KV events may lack
    from telemetry.kv_events.wire import Wire

MAX_BATCH_BYTES = 256 << 10


class Sender(Protocol):
    """What sends batches to readers, and keeps the last ones."""

    def send(self, topic: bytes, number: int, payload: bytes) -> None:
        """Send a batch. Never blocks. A reader that is too slow loses it."""


class Batches:
    """Encodes events and sends them in batches. It implements `Outbox`. The first event of a topic clears all blocks.

    So a reader that knows the topic from an earlier depot forgets what that one had. `num_events` counts by type and
    medium. `next_number` is that of the next batch; all topics share the numbers. `clock` is in seconds since the
    epoch.
    """

    def __init__(self, wire: Wire, sender: Sender, clock: Callable[[], float] = time.time) -> None:
        self._wire = wire
        self._sender = sender
        self._clock = clock
        self._events: dict[bytes, list[bytes]] = {}
        self._num_bytes = 0
        self._topics: dict[bytes, None] = {}
        self.next_number = 0
        self.num_events: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        return f"<Batches {self.next_number} sent, {len(self._topics)} topics>"

    @property
    def has_topics(self) -> bool:
        """Whether readers were told anything."""
        return bool(self._topics)

    def stored(self, chunk: NamedChunk, medium: Medium) -> None:
        """Add the event that a chunk's blocks are in a medium."""
        self._add(chunk.topic, self._wire.stored(chunk, medium))
        self.num_events[EventType.STORED, MEDIUM_NAMES[medium]] += 1

    def removed(self, topic: bytes, block_hashes: bytes, medium: Medium) -> None:
        """Add the event that blocks left a medium."""
        self._add(topic, self._wire.removed(block_hashes, medium))
        self.num_events[EventType.REMOVED, MEDIUM_NAMES[medium]] += 1

    def cleared(self) -> None:
        """Add to each topic the event that readers have to forget all blocks."""
        for topic in self._topics:
            self._clear(topic)

    def open_topic(self, topic: bytes) -> None:
        """Begin a topic, unless it has begun."""
        if topic not in self._topics:
            self._topics[topic] = None
            self._clear(topic)

    def flush(self) -> None:
        """Send what was added."""
        events, self._events, self._num_bytes = self._events, {}, 0
        for topic, of_topic in events.items():
            self._sender.send(topic, self.next_number, self._wire.batch(self._clock(), of_topic))
            self.next_number += 1

    def _clear(self, topic: bytes) -> None:
        # What was added before is void, and is not sent.
        self._num_bytes -= sum(map(len, self._events.pop(topic, ())))
        self._events[topic] = [self._wire.cleared]
        self._num_bytes += len(self._wire.cleared)
        self.num_events[EventType.CLEARED, ""] += 1

    def _add(self, topic: bytes, event: bytes) -> None:
        self.open_topic(topic)
        self._events.setdefault(topic, []).append(event)
        self._num_bytes += len(event)
        if self._num_bytes > MAX_BATCH_BYTES:
            self.flush()

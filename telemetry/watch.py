"""A live feed of events for one reader. A slow reader loses events and learns how many."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence

from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.events import BlocksAllocated, Event


class Watcher(Subscriber):
    """An iterator of `(event, num_lost)`: the events that pass the filters, oldest first, from the next batch on.

    `num_lost` events were lost between the event before and this one: if `capacity` events wait, the oldest one is
    lost. An empty filter passes all events. A filter by session passes the session's records of a report of blocks. One
    task reads. `close`, or the stop of the bus, ends the iteration after the waiting events.
    """

    name = "watch"

    def __init__(
        self,
        bus: EventBus,
        *,
        event_types: Iterable[type[Event]] = (),
        instance_id: str = "",
        session_id: str = "",
        tenant: str = "",
        capacity: int = 1_000,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, not at least 1")
        self._event_types = frozenset(event_types)
        self._instance_id = instance_id
        self._session_id = session_id
        self._tenant = tenant
        self._buffer: deque[Event] = deque(maxlen=capacity)
        self._capacity = capacity
        self._num_lost = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._bus = bus
        bus.subscribe(self)

    def __repr__(self) -> str:
        return f"<Watcher {len(self._buffer)}/{self._capacity} events, {self._num_lost} lost>"

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> tuple[Event, int]:
        while not self._buffer:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        num_lost, self._num_lost = self._num_lost, 0
        return self._buffer.popleft(), num_lost

    def handle(self, batch: Sequence[Event]) -> None:
        """Keep the events that pass the filters. The oldest ones are lost if too many wait."""
        passed = [shown for event in batch if (shown := self._shown(event)) is not None]
        if passed:
            self._num_lost += max(0, len(self._buffer) + len(passed) - self._capacity)
            self._buffer.extend(passed)
            self._changed.set()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._bus.unsubscribe(self)
        self._closed = True
        self._changed.set()

    def _shown(self, event: Event) -> Event | None:
        """Return the event, or the part of it that passes the filters."""
        if (
            (self._tenant and event.tenant != self._tenant)
            or (self._event_types and type(event) not in self._event_types)
            or (self._instance_id and event.instance_id != self._instance_id)
        ):
            return None
        if not self._session_id or event.session_id == self._session_id:
            return event
        if isinstance(event, BlocksAllocated):
            records = tuple(record for record in event.records if record.session_id == self._session_id)
            return dataclasses.replace(event, records=records) if records else None
        return None

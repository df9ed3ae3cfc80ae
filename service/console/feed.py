"""The last events, kept while somebody looks at them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import fields
from time import monotonic
from typing import Any

import numpy as np

from telemetry.bus import EventBus
from telemetry.delivery import Subscriber
from telemetry.events import Event

MAX_EVENTS = 500  # of a tenant, and of all
MAX_FEEDS = 16  # with events; that of another tenant is refused room until one is idle
IDLE_SECONDS = 15.0
MAX_TEXT = 300
_COMMON = frozenset(field.name for field in fields(Event))


class _Ring:
    """The last events of one reader's tenant. They have numbers of their own, so that nobody counts others' events."""

    def __init__(self) -> None:
        self.events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_EVENTS)
        self.num_events = 0
        self.last_read = monotonic()

    def add(self, event: dict[str, Any]) -> None:
        self.num_events += 1
        self.events.append((self.num_events, event))


class Feed(Subscriber):
    """A subscriber while pages read it. After `IDLE_SECONDS` without a reader it leaves the bus. For the event loop."""

    name = "console"

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._rings: dict[str, _Ring] = {}

    def __repr__(self) -> str:
        return f"<Feed of {len(self._rings)} tenants>"

    def read(self, tenant: str, after: int) -> dict[str, Any]:
        """Return the events of a tenant ("": of all) with numbers above `after`. The first reader gets none.

        `num_lost` events came since `after` and are not kept any more.
        """
        self._leave_if_idle()
        ring = self._rings.get(tenant)
        if ring is None:
            if not self._rings:
                self._bus.subscribe(self)
            if len(self._rings) >= MAX_FEEDS:
                return {"events": [], "last": 0, "num_lost": 0}
            ring = self._rings[tenant] = _Ring()
        ring.last_read = monotonic()
        if after > ring.num_events:
            after = 0  # from before the feed was idle
        events = [{"number": number, **event} for number, event in ring.events if number > after]
        return {"events": events, "last": ring.num_events, "num_lost": ring.num_events - after - len(events)}

    def handle(self, batch: Sequence[Event]) -> None:
        """Keep events in short, without their arrays."""
        self._leave_if_idle()
        for event in batch:
            rings = [ring for tenant, ring in self._rings.items() if tenant in ("", event.tenant)]
            if rings:
                brief = _brief(event)
                for ring in rings:
                    ring.add(brief)

    def _leave_if_idle(self) -> None:
        now = monotonic()
        idle = [tenant for tenant, ring in self._rings.items() if now - ring.last_read > IDLE_SECONDS]
        for tenant in idle:
            del self._rings[tenant]
        if idle and not self._rings:
            self._bus.unsubscribe(self)


def _brief(event: Event) -> dict[str, Any]:
    """Return an event as JSON's values: of an array or a tuple its length, of a long text the beginning.

    Bytes become hexadecimal digits.
    """
    own: dict[str, Any] = {}
    for each in fields(event):
        if each.name in _COMMON:
            continue
        value = getattr(event, each.name)
        if isinstance(value, (tuple, np.ndarray)):
            own[f"num_{each.name}"] = len(value)
        elif isinstance(value, str):
            own[each.name] = str(value)[:MAX_TEXT]
        elif isinstance(value, bytes):
            own[each.name] = value.hex()
        elif isinstance(value, np.generic):
            own[each.name] = value.item()
        else:
            own[each.name] = value
    return {
        "type": type(event).__name__,
        "time": event.time,
        "tenant": event.tenant,
        "instance_id": event.instance_id,
        "session_id": event.session_id,
        "fields": own,
    }

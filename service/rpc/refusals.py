"""Counts refused calls. A refused attach or store is also an event, and a line in the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

from service.access.audit import host_of
from service.errors import DepotError
from telemetry.events import CallRefused, Publisher
from telemetry.logs.line_format import log_event
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

PUBLISHED_METHODS = frozenset(
    f"/kvdepot.v1.CacheService/{name}" for name in ("AttachInstance", "Store", "StoreInline")
)  # operators of engines look for the reasons of these
LOGGED_FACTS = ("rpc", "instance_id", "tenant", "peer", "status", "reason", "detail")
LINES_PER_MINUTE = 5  # of one instance, RPC and reason
MAX_KEYS = 1_024  # with a limit of their own
MAX_DETAIL_CHARS = 1_000
UNKNOWN_METHOD = ("other", "UNIMPLEMENTED")


class Refusals:
    """The refused calls. `num_refused` counts all of them, by RPC and reason."""

    def __init__(self, bus: Publisher | None) -> None:
        self.num_refused: Counter[tuple[str, str]] = Counter()
        self._bus = bus
        self._limit = RateLimit[tuple[str, str, str]](LINES_PER_MINUTE, period_seconds=60.0, max_keys=MAX_KEYS)

    def unknown(self) -> None:
        """Count a call of an unknown method, which gRPC refuses."""
        self.num_refused[UNKNOWN_METHOD] += 1

    def refused(self, method: str, peer: str, tenant: str, instance_id: str, error: DepotError) -> None:
        """Count a refused call, and report it where it matters. `instance_id` is empty if no request was received."""
        rpc = method.removeprefix("/")
        self.num_refused[rpc, error.reason] += 1
        if method not in PUBLISHED_METHODS:
            return
        event = CallRefused(
            instance_id=instance_id,
            tenant=tenant,
            rpc=rpc,
            peer=host_of(peer),
            status=error.status.name,
            reason=error.reason,
            detail=str(error)[:MAX_DETAIL_CHARS],
        )
        if self._bus is not None:
            self._bus.publish(event)
        num_suppressed = self._limit.admit((event.instance_label, rpc, error.reason), time.monotonic())
        if num_suppressed is not None:
            facts = {name: getattr(event, name) for name in LOGGED_FACTS}
            facts |= {"instance_id": event.instance_label, "peer": peer, "num_suppressed": num_suppressed}
            log_event(logger, logging.WARNING, "CallRefused", facts)

"""The audit of denied calls and of admins' changes."""

from __future__ import annotations

import logging
import time
from collections import Counter

from service.errors import DepotError
from telemetry.events import CallDenied, Publisher
from telemetry.logs.line_format import log_event
from telemetry.rate_limit import RateLimit

logger = logging.getLogger("kvdepot.audit")

LINES_PER_MINUTE = 10  # for one peer and one reason
MAX_PEERS = 1_024  # with a limit of their own


class Audit:
    """The reports of denied calls: log lines, events and counts.

    `num_denied[tenant, reason]` counts all of them. The tenant is empty if it is unknown.
    """

    def __init__(self, bus: Publisher | None, *, lines_per_minute: int = LINES_PER_MINUTE) -> None:
        self.num_denied: Counter[tuple[str, str]] = Counter()
        self._bus = bus
        self._limit = RateLimit[tuple[str, str]](lines_per_minute, period_seconds=60.0, max_keys=MAX_PEERS)

    def denied(self, method: str, peer: str, tenant: str, error: DepotError) -> None:
        """Report that `peer` was denied an RPC. `tenant` is empty if it is unknown."""
        self.num_denied[tenant, error.reason] += 1
        rpc, host = method.removeprefix("/"), host_of(peer)
        if self._bus is not None:
            self._bus.publish(CallDenied(tenant=tenant, rpc=rpc, peer=host, reason=error.reason))
        num_suppressed = self._limit.admit((host, error.reason), time.monotonic())
        if num_suppressed is not None:
            facts = {"rpc": rpc, "tenant": tenant, "peer": peer, "status": error.status.name, "reason": error.reason}
            log_event(logger, logging.WARNING, "CallDenied", {**facts, "num_suppressed": num_suppressed})

    def acted(self, method: str, peer: str, tenant: str) -> None:
        """Report that an admin called an RPC that changes something for all tenants."""
        log_event(logger, logging.INFO, "AdminActed", {"rpc": method.removeprefix("/"), "tenant": tenant, "peer": peer})


def host_of(peer: str) -> str:
    """Return the peer without its port. The port differs from connection to connection."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer

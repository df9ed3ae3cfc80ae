"""The audit: a line, an event and a count for each call that was refused to its caller, and each act of an admin."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping

from service.errors import DepotError
from telemetry.events import CallDenied, Publisher
from telemetry.rate_limit import RateLimit

logger = logging.getLogger("kvdepot.audit")

LINES_PER_MINUTE = 10  # of one peer, for one reason
MAX_PEERS = 1_024  # that are told apart by the limit


class Audit:
    """Tells who was refused what. `num_denied` counts by tenant (empty: not known) and reason, and misses nothing."""

    def __init__(self, bus: Publisher | None, *, lines_per_minute: int = LINES_PER_MINUTE) -> None:
        self.num_denied: Counter[tuple[str, str]] = Counter()
        self._bus = bus
        self._limit = RateLimit[tuple[str, str]](lines_per_minute, period_seconds=60.0, max_keys=MAX_PEERS)

    def denied(self, method: str, peer: str, tenant: str, error: DepotError) -> None:
        """A call was refused. `tenant` is empty where it is not known whose it was."""
        self.num_denied[tenant, error.reason] += 1
        rpc, host = method.removeprefix("/"), host_of(peer)
        if self._bus is not None:
            self._bus.publish(CallDenied(tenant=tenant, rpc=rpc, peer=host, reason=error.reason))
        num_suppressed = self._limit.admit((host, error.reason), time.monotonic())
        if num_suppressed is not None:
            facts = {"rpc": rpc, "tenant": tenant, "peer": peer, "status": error.status.name, "reason": error.reason}
            _write(logging.WARNING, "CallDenied", {**facts, "num_suppressed": num_suppressed})

    def acted(self, method: str, peer: str, tenant: str) -> None:
        """An admin was let do what changes things for others."""
        _write(logging.INFO, "AdminActed", {"rpc": method.removeprefix("/"), "tenant": tenant, "peer": peer})


def host_of(peer: str) -> str:
    """The peer without its port, which differs from connection to connection."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _write(level: int, event: str, facts: Mapping[str, object]) -> None:
    # repr, so that nothing that came over the wire can forge a line of its own
    message = " ".join([event, *(f"{name}=%({name})r" for name in facts)])
    logger.log(level, message, dict(facts), extra={"event": event})

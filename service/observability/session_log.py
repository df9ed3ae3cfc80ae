"""Logs each ended session as one readable block.

A block takes longer than the rest of EndSession, and an engine that dies ends thousands of sessions in one step. So a
subscriber of the bus writes the blocks. A dropped event loses a block in the log. EndSession's answer does not come
from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from service.depot.sessions import Sessions
from service.observability.session_report import report
from telemetry.delivery import Subscriber
from telemetry.events import Event, SessionEnded
from telemetry.logs.line_format import SpanOf, log_event, no_span, span_ids
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

SessionsOf = Callable[[str], Sessions | None]
"""Returns the sessions of a tenant, or None if the tenant is gone."""

EVENT = "SessionSummary"
BLOCKS_PER_SECOND = 10  # for each reason


class SessionLog(Subscriber):
    """A subscriber that logs each ended session at INFO. The message is the block, the arguments are the facts."""

    name = "session log"

    def __init__(
        self, sessions_of: SessionsOf, *, span_of: SpanOf = no_span, blocks_per_second: int = BLOCKS_PER_SECOND
    ) -> None:
        self._sessions_of = sessions_of
        self._span_of = span_of
        self._limit = RateLimit[str](blocks_per_second, period_seconds=1.0)

    def handle(self, batch: Sequence[Event]) -> None:
        """Log ended sessions, up to the limit."""
        if not logger.isEnabledFor(logging.INFO):
            return
        for event in batch:
            if isinstance(event, SessionEnded):
                self._log(event)

    def close(self) -> None:
        """Log how many sessions were suppressed since the last block."""
        for reason, num_suppressed in self._limit.suppressed().items():
            facts = {"reason": str(reason), "num_suppressed": num_suppressed}
            log_event(logger, logging.INFO, EVENT, facts)

    def _log(self, event: SessionEnded) -> None:
        num_suppressed = self._limit.admit(event.reason, event.monotonic)
        if num_suppressed is None:
            return
        sessions = self._sessions_of(event.tenant)
        if sessions is None:
            return
        session = sessions.last_ended(event.instance_id, event.session_id)
        if session is None or session.duration_seconds != event.duration_seconds:
            return  # it is forgotten, or another session with this id ended after it
        block = report(session)
        text = block.text
        if event.tenant:
            block.facts["tenant"] = event.tenant
            text += f"\n  of tenant {event.tenant}"
        if num_suppressed:
            block.facts["num_suppressed"] = num_suppressed
            text += f"\n  {num_suppressed:,} sessions that ended before are not shown"
        logger.info(text.replace("%", "%%"), block.facts, extra={"event": EVENT, **span_ids(self._span_of(event))})

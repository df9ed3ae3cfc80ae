"""Events as log lines. The message begins with the event's name; the facts are in `LogRecord.args`, by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from telemetry import events
from telemetry.attributes import Plain, attributes
from telemetry.delivery import Subscriber
from telemetry.kinds import Outcome
from telemetry.logs.line_format import SpanOf, log_event, no_span, span_ids
from telemetry.logs.summary import summary
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

INFO_EVENTS = frozenset(
    {
        events.ServerStarted,
        events.ServerDraining,
        events.ServerStopped,
        events.LogLevelChanged,
        events.FileReloaded,
        events.RecordingEnded,
        events.InstanceAttached,
        events.InstanceDetached,
        events.SessionStarted,
        events.LookupFinished,
        events.StoreFinished,
        events.RetrieveFinished,
        events.PrefixPinned,
        events.PinEnded,
        events.CacheCleared,
        events.EvictionPolicyChanged,
    }
)
TIER_CHUNKS = (events.TierAsked, events.TierRead, events.TierWritten)  # one for each chunk or question
WRONG_BYTES = ("damaged", "corrupt")
UNUSED_STATES = ("failing", "unusable")
COUNTED_FIELDS = ("keys", "records")  # a line has their number only, and nothing per chunk or block
LINES_PER_SECOND = 20  # of one event type; a line costs the event loop some 20 µs
WARNINGS_PER_MINUTE = 10  # of one event type and tenant: a full L1 refuses stores for hours
MAX_KEYS = 1_024  # pairs of type and tenant


class LogSubscriber(Subscriber):
    """A subscriber that logs refusals and failures as WARNING, `INFO_EVENTS` as INFO, all other events as DEBUG.

    A chunk with wrong bytes in a tier is an ERROR.

    It logs at most `lines_per_second` of a type at INFO, and at most `warnings_per_minute` of a type and tenant above
    it. The next line has `num_suppressed`. DEBUG has no limit. `span_of` returns the span of an event.
    """

    name = "log"

    def __init__(
        self,
        *,
        span_of: SpanOf = no_span,
        lines_per_second: int = LINES_PER_SECOND,
        warnings_per_minute: int = WARNINGS_PER_MINUTE,
    ) -> None:
        self._span_of = span_of
        self._limit = RateLimit[str](lines_per_second, period_seconds=1.0)
        self._warning_limit = RateLimit[tuple[str, str]](warnings_per_minute, period_seconds=60.0, max_keys=MAX_KEYS)

    def handle(self, batch: Sequence[events.Event]) -> None:
        """Log each event whose level is enabled."""
        for event in batch:
            level = level_of(event)
            if logger.isEnabledFor(level):
                self._log(event, level)

    def close(self) -> None:
        """Log how many lines were suppressed since the last line of their kind."""
        for type_name, num_suppressed in self._limit.suppressed().items():
            log_event(logger, logging.INFO, type_name, {"num_suppressed": num_suppressed})
        for (type_name, tenant), num_suppressed in self._warning_limit.suppressed().items():
            facts: dict[str, Plain] = {"tenant": tenant} if tenant else {}
            log_event(logger, logging.WARNING, type_name, facts | {"num_suppressed": num_suppressed})

    def _log(self, event: events.Event, level: int) -> None:
        type_name = type(event).__name__
        num_suppressed = 0
        if level > logging.DEBUG:
            if level >= logging.WARNING:
                admitted = self._warning_limit.admit((type_name, event.tenant), event.monotonic)
            else:
                admitted = self._limit.admit(type_name, event.monotonic)
            if admitted is None:
                return
            num_suppressed = admitted
        facts = facts_of(event)
        if num_suppressed:
            facts["num_suppressed"] = num_suppressed
        log_event(logger, level, type_name, facts, span_ids(self._span_of(event)), summary=summary(event))


def level_of(event: events.Event) -> int:
    """Return the level at which an event is logged."""
    if isinstance(event, TIER_CHUNKS):  # what makes a tier fail is in the line of its state
        return logging.ERROR if event.outcome in WRONG_BYTES else logging.DEBUG
    if isinstance(event, events.TierStateChanged):
        return logging.WARNING if event.state in UNUSED_STATES else logging.INFO
    if getattr(event, "outcome", "") in (Outcome.REFUSED, Outcome.FAILED):
        return logging.WARNING
    if isinstance(event, events.RecordingEnded):
        return logging.WARNING if event.reason else logging.INFO
    if isinstance(event, (events.FileRefused, events.IoWorkerEnded)) or (
        isinstance(event, events.StoreFinished) and event.refused_tokens
    ):
        return logging.WARNING
    return logging.INFO if type(event) in INFO_EVENTS else logging.DEBUG


def facts_of(event: events.Event) -> dict[str, Plain]:
    """Return the facts of a line: the tenant and the ids, if any, and the event's own fields."""
    facts: dict[str, Plain] = {}
    if event.tenant:
        facts["tenant"] = event.tenant
    if event.instance_id:
        facts["instance_id"] = event.instance_label
    if event.session_id:
        facts["session_id"] = event.session_id
    for name, value in attributes(event).items():
        if name in COUNTED_FIELDS and isinstance(value, list):
            facts[f"num_{name}"] = len(value)
        else:
            facts[name] = round(value, 6) if isinstance(value, float) else value
    return facts

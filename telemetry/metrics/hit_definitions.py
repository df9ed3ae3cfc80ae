"""The definitions of the metrics of what hits are worth: in bytes, in time, and for each instance."""

from __future__ import annotations

from telemetry.metrics import attributes as by
from telemetry.metrics.metric import Metric, counter, gauge

LOOKUP_MATCHED_IO = counter(
    "kvdepot.lookup.matched", "By", "Bytes of the chunks that lookups found, those of all ranks.", by.MODEL
)
INSTANCE_LOOKUP_TOKENS = counter(
    "kvdepot.instance.lookup.tokens", "{token}", "Tokens that an instance looked up.", by.ONE_INSTANCE, by.MODEL
)
INSTANCE_MATCHED = counter(
    "kvdepot.instance.lookup.matched_tokens",
    "{token}",
    "Tokens that an instance's lookups found. Its hit ratio is the rate of these, divided by the rate of those above.",
    *(by.ONE_INSTANCE, by.MODEL),
)
PREFILL_SAVED = counter(
    "kvdepot.prefill.saved",
    "s",
    "Time that an instance would have needed to compute the tokens that it retrieved: their number divided by its "
    "rate. Tokens count once, not for each rank. Nothing is counted while the rate is not known.",
    *(by.ONE_INSTANCE, by.MODEL, by.RATE_SOURCE),
)
PREFILL_RATE = gauge(
    "kvdepot.prefill.token_rate",
    "",
    "Tokens of a prompt that an attached instance computes in a second. Measured: the upper quartile of its last 64 "
    "prefills, each from the answer of a lookup or a retrieve to the next store of the session. The engine's queue is "
    "part of that time. If an engine stores only at the end of a request, so is the time of its answer. Both make the "
    "time saved too long. An engine that reports its rate at the attach has neither.",
    *(by.ONE_INSTANCE, by.MODEL, by.RATE_SOURCE),
)

HIT_METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order in which they stand above."""

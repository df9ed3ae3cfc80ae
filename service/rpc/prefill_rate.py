"""The rate of prefill that an engine says of itself."""

from __future__ import annotations

from kvdepot.v1 import cache_pb2
from service.rpc.violations import Violations

MAX_TOKENS_PER_SECOND = 1e12


def prefill_rate(wrong: Violations, message: cache_pb2.AttachInstanceRequest | cache_pb2.LookupRequest) -> float | None:
    """Return the tokens a second of a message, and add what is wrong with them. None: it says nothing."""
    if not message.HasField("prefill_tokens_per_second"):
        return None
    rate = message.prefill_tokens_per_second
    if not 0 < rate <= MAX_TOKENS_PER_SECOND:  # NaN is refused, too
        wrong.add("prefill_tokens_per_second", f"is {rate:g}, not above 0 and at most {MAX_TOKENS_PER_SECOND:g}")
    return rate

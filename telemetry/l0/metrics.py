"""The engines' blocks, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from telemetry.l0.lifecycle import L0Counts
from telemetry.l0.subscriber import L0Subscriber
from telemetry.metrics import definitions as definitions
from telemetry.metrics.label_limiter import LabelLimiter
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars


def read_blocks(l0: L0Subscriber, models: LabelLimiter) -> Scalars:
    """What the blocks of each instance are now, and what happened to them so far."""
    l0.expire(monotonic())  # a depot that hears nothing releases blocks, too
    ids = {(instance_id, models.exported(counts.model_name)): counts for instance_id, counts in l0.counts().items()}
    return {
        definitions.BLOCKS: {
            (*attributes, state): num_blocks
            for attributes, counts in ids.items()
            for state, num_blocks in _by_state(counts).items()
        },
        definitions.BLOCK_ALLOCATIONS: _each(ids, "allocations"),
        definitions.BLOCK_REUSES: _each(ids, "reuses"),
        definitions.BLOCK_SHARES: _each(ids, "shares"),
        definitions.BLOCK_EVICTIONS: _each(ids, "evictions"),
        definitions.MALFORMED_RECORDS: {(): l0.num_malformed},
    }


def _by_state(counts: L0Counts) -> Mapping[str, int]:
    return {"owned": counts.owned, "released": counts.released, "unknown": counts.unknown}


def _each(ids: Mapping[tuple[str, str], L0Counts], name: str) -> Mapping[Attributes, float]:
    return {attributes: getattr(counts, name) for attributes, counts in ids.items()}

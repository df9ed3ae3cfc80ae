"""Metrics that are read from the tiers behind L1, so that dropped events do not change them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from service.depot.tier import Tier
from service.tiers.snapshot import TierSnapshot, TierState
from telemetry.metrics import tier_definitions as definitions
from telemetry.metrics.metric import Attribute, Attributes, Metric
from telemetry.metrics.snapshot import Scalars

READ, WRITE = definitions.WAY.values


def read_tiers(tiers: Iterable[Tier]) -> Scalars:
    """Return the state of all tiers, and what they did so far. For the event loop."""
    sums: defaultdict[Metric, dict[Attributes, float]] = defaultdict(dict)
    for tier in tiers:
        for metric, values in _values(tier.snapshot()).items():
            sums[metric].update(values)
    return sums


def _values(tier: TierSnapshot) -> Scalars:
    name = tier.name
    return {
        definitions.TIER_STATE: {(name, tier.kind, state): int(tier.state is state) for state in TierState},
        definitions.TIER_USED: _if_known((name,), tier.used_bytes),
        definitions.TIER_CAPACITY: _if_known((name,), tier.capacity_bytes),
        definitions.TIER_RESIDENT: _if_known((name,), tier.num_chunks),
        definitions.TIER_EVICTED: {(name,): tier.num_evicted} if tier.is_local else {},
        definitions.TIER_ASKED: {(name,): tier.num_asked},
        definitions.TIER_FOUND: {(name,): tier.num_found},
        definitions.TIER_READ: _by(name, definitions.READ_OUTCOME, tier.reads),
        definitions.TIER_WRITTEN: _by(name, definitions.WRITE_OUTCOME, tier.writes),
        definitions.TIER_DROPPED: _by(name, definitions.DROP_REASON, tier.dropped),
        definitions.TIER_IO: {(name, READ): tier.read_bytes, (name, WRITE): tier.written_bytes},
        definitions.TIER_RATE: {
            **_if_known((name, READ), tier.read_bytes_per_second),
            **_if_known((name, WRITE), tier.write_bytes_per_second),
        },
        definitions.TIER_QUEUED: {(name, READ): tier.queued_reads, (name, WRITE): tier.queued_writes},
        definitions.TIER_QUEUED_BYTES: {(name,): tier.queued_write_bytes},
        definitions.IO_WORKERS: {(name,): tier.num_io_workers},
    }


def _if_known(attributes: Attributes, value: float | None) -> Mapping[Attributes, float]:
    return {attributes: value} if value is not None else {}


def _by(name: str, attribute: Attribute, counts: Mapping[str, int]) -> Mapping[Attributes, float]:
    """Return counts by a key. Keys without a count are 0, so that the first one shows as an increase."""
    return {(name, key): count for key, count in (dict.fromkeys(attribute.values, 0) | dict(counts)).items()}

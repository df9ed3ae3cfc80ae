"""The state of the tiers as messages: L1, and what is behind it."""

from __future__ import annotations

from kvdepot.v1 import admin_pb2, cache_pb2
from service.depot.tenant_depots import TenantDepots
from service.rpc import encode
from service.tiers.load import LoadEnd
from service.tiers.snapshot import TierSnapshot, TierState

L1_NAME = "l1"
_STATES = {each: admin_pb2.TierState.Value(f"TIER_STATE_{each.name}") for each in TierState}


def tier_statuses(depots: TenantDepots, populated_bytes: int) -> list[admin_pb2.TierStatus]:
    """Return the state of L1, and of the tiers behind it, in their order."""
    return [_l1(depots, populated_bytes), *(_behind_l1(tier.snapshot()) for tier in depots.tiers)]


def _l1(depots: TenantDepots, populated_bytes: int) -> admin_pb2.TierStatus:
    index = depots.index
    return admin_pb2.TierStatus(
        tier=cache_pb2.TIER_L1,
        name=L1_NAME,
        kind="memory",
        is_local=True,
        state=admin_pb2.TIER_STATE_AVAILABLE,
        used_bytes=index.pool.used_bytes,
        capacity_bytes=index.pool.capacity_bytes,
        populated_bytes=populated_bytes,
        num_chunks=index.num_resident,
        num_protected_chunks=index.num_protected,
        num_evicted_chunks=index.num_evicted,
        num_refused_chunks=sum(depot.num_refused_chunks for depot in depots),
        num_verified_chunks=depots.verification.num_verified.total(),
        num_corrupt_chunks=depots.verification.num_corrupt.total(),
    )


def _behind_l1(tier: TierSnapshot) -> admin_pb2.TierStatus:
    seconds_to_probe = tier.seconds_to_probe
    return admin_pb2.TierStatus(
        tier=cache_pb2.TIER_L2,
        name=tier.name,
        kind=tier.kind,
        is_local=tier.is_local,
        state=_STATES[tier.state],
        detail=tier.detail,
        time_to_probe=encode.duration(max(0.0, seconds_to_probe)) if seconds_to_probe is not None else None,
        used_bytes=tier.used_bytes or 0,
        capacity_bytes=tier.capacity_bytes or 0,
        num_chunks=tier.num_chunks or 0,
        num_evicted_chunks=tier.num_evicted,
        num_verified_chunks=tier.reads.get(LoadEnd.ARRIVED, 0),
        num_corrupt_chunks=tier.reads.get(LoadEnd.DAMAGED, 0),
        traffic=_traffic(tier),
    )


def _traffic(tier: TierSnapshot) -> admin_pb2.TierTraffic:
    return admin_pb2.TierTraffic(
        num_asked_chunks=tier.num_asked,
        num_found_chunks=tier.num_found,
        num_reads_by_outcome=tier.reads,
        num_writes_by_outcome=tier.writes,
        num_dropped_writes_by_reason=tier.dropped,
        read_bytes=tier.read_bytes,
        written_bytes=tier.written_bytes,
        read_bytes_per_second=tier.read_bytes_per_second,
        write_bytes_per_second=tier.write_bytes_per_second,
        num_queued_reads=tier.queued_reads,
        num_queued_writes=tier.queued_writes,
        queued_write_bytes=tier.queued_write_bytes,
        num_io_workers=tier.num_io_workers,
        num_killed_io_workers=tier.num_io_workers_killed,
        num_running_writes=tier.running_writes,
    )

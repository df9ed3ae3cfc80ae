"""Builds the requests, for both clients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from kvdepot.packed_ids import Ids, with_ids
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.v1.cache_pb2 import BlockTable, KvGroup, Lease, MemoryRegion, Prefix

PrefixLike: TypeAlias = "Prefix | Ids"
"""A `Prefix`, or the token ids of one that has neither salt nor adapter."""

BlockTables: TypeAlias = "Sequence[BlockTable | Ids]"
"""The block ids of each group, in the order in which the groups were attached; or see `block_table`."""

LeaseLike: TypeAlias = "Lease | str"
"""A lease as `lookup` returned it, or its id."""


def token_prefix(token_ids: Ids, *, cache_salt: str = "", adapter: str = "") -> Prefix:
    """A prompt by its token ids, from token 0."""
    return with_ids(Prefix(cache_salt=cache_salt, adapter=adapter), token_ids=token_ids)


def hash_prefix(
    block_hashes: Iterable[bytes], hash_block_size: int, *, cache_salt: str = "", adapter: str = ""
) -> Prefix:
    """A prompt by the engine's own chained block hashes, one for each whole block of ``hash_block_size`` tokens."""
    return Prefix(block_hashes=block_hashes, hash_block_size=hash_block_size, cache_salt=cache_salt, adapter=adapter)


def block_table(block_ids: Ids, *, absent_blocks: int = 0) -> BlockTable:
    """Blocks of one group, after so many that the engine does not have: those before a sliding window, for instance.

    Of absent blocks nothing is stored and nothing is retrieved.
    """
    return with_ids(BlockTable(absent_blocks=absent_blocks), block_ids=block_ids)


def allocation_record(
    session_id: str,
    *,
    block_ids: Ids = (),
    token_ids: Ids = (),
    reused_block_ids: Ids = (),
    resumed: bool = False,
) -> observability_pb2.BlockAllocationRecord:
    """Blocks that the scheduler gave to one session, for `report_block_allocation`."""
    record = observability_pb2.BlockAllocationRecord(session_id=session_id, resumed=resumed)
    return with_ids(record, block_ids=block_ids, token_ids=token_ids, reused_block_ids=reused_block_ids)


def attach(
    instance_id: str,
    model_name: str,
    groups: Iterable[KvGroup],
    regions: Iterable[MemoryRegion],
    world_size: int,
    rank: int,
) -> cache_pb2.AttachInstanceRequest:
    return cache_pb2.AttachInstanceRequest(
        instance_id=instance_id,
        model_name=model_name,
        groups=groups,
        regions=regions,
        world_size=world_size,
        rank=rank,
    )


def lookup(
    instance_id: str, session_id: str, prefix: PrefixLike, computed_tokens: int, max_wait_seconds: float
) -> cache_pb2.LookupRequest:
    return cache_pb2.LookupRequest(
        instance_id=instance_id,
        session_id=session_id,
        prefix=_prefix(prefix),
        computed_tokens=computed_tokens,
        max_wait=_duration(max_wait_seconds) if max_wait_seconds else None,
    )


def store(
    instance_id: str,
    rank: int,
    session_id: str,
    prefix: PrefixLike,
    block_tables: BlockTables,
    start_token: int,
    ready_event: bytes,
) -> cache_pb2.StoreRequest:
    return cache_pb2.StoreRequest(
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        prefix=_prefix(prefix),
        start_token=start_token,
        block_tables=_block_tables(block_tables),
        ready_event=ready_event,
    )


def retrieve(
    instance_id: str,
    rank: int,
    session_id: str,
    lease: LeaseLike,
    block_tables: BlockTables,
    skip_tokens: int,
    ready_event: bytes,
) -> cache_pb2.RetrieveRequest:
    return cache_pb2.RetrieveRequest(
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        lease_id=_lease_id(lease),
        block_tables=_block_tables(block_tables),
        skip_tokens=skip_tokens,
        ready_event=ready_event,
    )


def release_lease(lease: LeaseLike) -> cache_pb2.ReleaseLeaseRequest:
    return cache_pb2.ReleaseLeaseRequest(lease_id=_lease_id(lease))


def store_inline_header(
    instance_id: str, rank: int, session_id: str, prefix: PrefixLike, start_token: int
) -> cache_pb2.StoreInlineRequest:
    header = cache_pb2.StoreInlineHeader(
        instance_id=instance_id, rank=rank, session_id=session_id, prefix=_prefix(prefix), start_token=start_token
    )
    return cache_pb2.StoreInlineRequest(header=header)


def retrieve_inline(
    instance_id: str, rank: int, session_id: str, lease: LeaseLike, skip_tokens: int
) -> cache_pb2.RetrieveInlineRequest:
    return cache_pb2.RetrieveInlineRequest(
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        lease_id=_lease_id(lease),
        skip_tokens=skip_tokens,
    )


def end_session(instance_id: str, session_id: str) -> cache_pb2.EndSessionRequest:
    return cache_pb2.EndSessionRequest(instance_id=instance_id, session_id=session_id)


def report_block_allocation(
    instance_id: str,
    model_name: str,
    block_size: int,
    records: Iterable[observability_pb2.BlockAllocationRecord],
) -> observability_pb2.ReportBlockAllocationRequest:
    return observability_pb2.ReportBlockAllocationRequest(
        instance_id=instance_id, model_name=model_name, block_size=block_size, records=records
    )


def watch_events(
    event_types: Iterable[str], instance_id: str, session_id: str, tenant: str
) -> observability_pb2.WatchEventsRequest:
    return observability_pb2.WatchEventsRequest(
        event_types=event_types, instance_id=instance_id, session_id=session_id, tenant=tenant
    )


def list_sessions(
    instance_id: str, page_size: int, page_token: str, tenant: str
) -> observability_pb2.ListSessionsRequest:
    return observability_pb2.ListSessionsRequest(
        instance_id=instance_id, page_size=page_size, page_token=page_token, tenant=tenant
    )


def get_session(instance_id: str, session_id: str, tenant: str) -> observability_pb2.GetSessionRequest:
    return observability_pb2.GetSessionRequest(instance_id=instance_id, session_id=session_id, tenant=tenant)


def clear_cache(model_name: str, cache_salt: str | None, force: bool, tenant: str) -> admin_pb2.ClearCacheRequest:
    return admin_pb2.ClearCacheRequest(model_name=model_name, cache_salt=cache_salt, force=force, tenant=tenant)


def _prefix(prefix: PrefixLike) -> Prefix:
    return prefix if isinstance(prefix, Prefix) else token_prefix(prefix)


def _block_tables(tables: BlockTables) -> list[BlockTable]:
    return [table if isinstance(table, BlockTable) else block_table(table) for table in tables]


def _lease_id(lease: LeaseLike) -> str:
    return lease if isinstance(lease, str) else lease.lease_id


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration

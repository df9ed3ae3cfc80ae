"""Messages made from callers' values: prefixes, block tables, leases, and requests with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from kvdepot.v1 import cache_pb2, observability_pb2
from kvdepot.v1.cache_pb2 import BlockTable, Lease, Prefix
from kvdepot.wire import Ids, with_ids

PrefixLike: TypeAlias = "Prefix | Ids"
"""A `Prefix`, or the token ids of one that has neither salt nor adapter."""

BlockTables: TypeAlias = "Sequence[BlockTable | Ids]"
"""The block ids of each group, in the order in which the groups were attached; or see `block_table`."""

LeaseLike: TypeAlias = "Lease | str"
"""A lease as `lookup` returned it, or its id."""


def token_prefix(token_ids: Ids, *, cache_salt: str = "", adapter: str = "") -> Prefix:
    """Return a prompt by its token ids, from token 0."""
    return with_ids(Prefix(cache_salt=cache_salt, adapter=adapter), token_ids=token_ids)


def hash_prefix(
    block_hashes: Iterable[bytes], hash_block_size: int, *, cache_salt: str = "", adapter: str = ""
) -> Prefix:
    """Return a prompt by the engine's chained block hashes, one for each whole block of `hash_block_size` tokens."""
    return Prefix(block_hashes=block_hashes, hash_block_size=hash_block_size, cache_salt=cache_salt, adapter=adapter)


def block_table(block_ids: Ids, *, absent_blocks: int = 0) -> BlockTable:
    """Return the block table of one group. The engine does not have its first `absent_blocks` blocks.

    Those before a sliding window are absent, for instance. They are neither stored nor retrieved.
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
    """Return a record of the blocks that the scheduler gave to one session, for `report_block_allocation`."""
    record = observability_pb2.BlockAllocationRecord(session_id=session_id, resumed=resumed)
    return with_ids(record, block_ids=block_ids, token_ids=token_ids, reused_block_ids=reused_block_ids)


def lookup(
    instance_id: str, session_id: str, prefix: PrefixLike, computed_tokens: int, max_wait_seconds: float
) -> cache_pb2.LookupRequest:
    """Return the request of a lookup."""
    return cache_pb2.LookupRequest(
        instance_id=instance_id,
        session_id=session_id,
        prefix=_prefix(prefix),
        computed_tokens=computed_tokens,
        max_wait=_duration(max_wait_seconds) if max_wait_seconds else None,
    )


def explain_prefix(
    prefix: PrefixLike, instance_id: str, model_name: str, tenant: str
) -> observability_pb2.ExplainPrefixRequest:
    """Return the request to explain a prompt."""
    return observability_pb2.ExplainPrefixRequest(
        instance_id=instance_id, model_name=model_name, prefix=_prefix(prefix), tenant=tenant
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
    """Return the request of a store."""
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
    """Return the request of a retrieve."""
    return cache_pb2.RetrieveRequest(
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        lease_id=lease_id_of(lease),
        block_tables=_block_tables(block_tables),
        skip_tokens=skip_tokens,
        ready_event=ready_event,
    )


def store_inline_header(
    instance_id: str, rank: int, session_id: str, prefix: PrefixLike, start_token: int
) -> cache_pb2.StoreInlineRequest:
    """Return the first message of an inline store."""
    header = cache_pb2.StoreInlineHeader(
        instance_id=instance_id, rank=rank, session_id=session_id, prefix=_prefix(prefix), start_token=start_token
    )
    return cache_pb2.StoreInlineRequest(header=header)


def _prefix(prefix: PrefixLike) -> Prefix:
    return prefix if isinstance(prefix, Prefix) else token_prefix(prefix)


def _block_tables(tables: BlockTables) -> list[BlockTable]:
    return [table if isinstance(table, BlockTable) else block_table(table) for table in tables]


def lease_id_of(lease: LeaseLike) -> str:
    """Return a lease's id."""
    return lease if isinstance(lease, str) else lease.lease_id


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration

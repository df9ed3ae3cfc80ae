"""Messages made from callers' values: prefixes, block tables, leases, and requests with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from kvdepot.errors import invalid
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.v1.cache_pb2 import BlockTable, Lease, Prefix
from kvdepot.wire import Ids, with_ids
from kvdepot.wrong_arguments import duration, message, wrong_ids, wrong_lease, wrong_table, wrong_tables

PrefixLike: TypeAlias = "Prefix | Ids"
"""A `Prefix`, or the token ids of one that has neither salt nor adapter."""

BlockTables: TypeAlias = "Sequence[BlockTable | Ids]"
"""The block ids of each group, in the order in which the groups were attached; or see `block_table`."""

LeaseLike: TypeAlias = "Lease | str"
"""A lease as `lookup` returned it, or its id."""


def token_prefix(token_ids: Ids, *, cache_salt: str = "", adapter: str = "") -> Prefix:
    """Return a prompt by its token ids, from token 0.

    Raises: InvalidArgument.
    """
    prefix = message(Prefix, cache_salt=cache_salt, adapter=adapter)
    try:
        return with_ids(prefix, token_ids=token_ids)
    except (TypeError, ValueError) as error:
        raise wrong_ids("prefix.token_ids", token_ids, error) from None


def hash_prefix(
    block_hashes: Iterable[bytes], hash_block_size: int, *, cache_salt: str = "", adapter: str = ""
) -> Prefix:
    """Return a prompt by the engine's chained block hashes, one for each whole block of `hash_block_size` tokens.

    Raises: InvalidArgument.
    """
    hashes = block_hashes if isinstance(block_hashes, Sequence) or block_hashes is None else list(block_hashes)
    return message(Prefix, block_hashes=hashes, hash_block_size=hash_block_size, cache_salt=cache_salt, adapter=adapter)


def block_table(block_ids: Ids, *, absent_blocks: int = 0) -> BlockTable:
    """Return the block table of one group. The engine does not have its first `absent_blocks` blocks.

    Those before a sliding window are absent, for instance. They are neither stored nor retrieved. Ids of -1 at the
    beginning stand for absent blocks, too.

    Raises: InvalidArgument.
    """
    return _block_table(0, block_ids, absent_blocks)


def allocation_record(
    session_id: str,
    *,
    block_ids: Ids = (),
    token_ids: Ids = (),
    reused_block_ids: Ids = (),
    resumed: bool = False,
) -> observability_pb2.BlockAllocationRecord:
    """Return a record of the blocks that the scheduler gave to one session, for `report_block_allocation`.

    Raises: InvalidArgument.
    """
    record = message(observability_pb2.BlockAllocationRecord, session_id=session_id, resumed=resumed)
    for field, ids in (("block_ids", block_ids), ("token_ids", token_ids), ("reused_block_ids", reused_block_ids)):
        try:
            with_ids(record, **{field: ids})
        except (TypeError, ValueError) as error:
            raise wrong_ids(field, ids, error) from None
    return record


def set_log_level(level: str, logger: str, for_seconds: float | None) -> admin_pb2.SetLogLevelRequest:
    """Return the request of a change of a level, by the level's name in any case.

    Raises: InvalidArgument.
    """
    name = f"LOG_LEVEL_{level.upper() or 'UNSPECIFIED'}"
    if name not in admin_pb2.LogLevel.keys():  # noqa: SIM118 - it is no mapping
        raise invalid("level", f"is {level!r}, not debug, info, warning or error")
    return message(
        admin_pb2.SetLogLevelRequest,
        level=admin_pb2.LogLevel.Value(name),
        logger=logger,
        duration=duration(for_seconds, "for_seconds") if for_seconds is not None else None,
    )


def lookup(
    instance_id: str,
    session_id: str,
    prefix: PrefixLike,
    computed_tokens: int,
    max_wait_seconds: float,
    prefill_tokens_per_second: float | None = None,
    will_continue: bool | None = None,
) -> cache_pb2.LookupRequest:
    """Return the request of a lookup.

    Raises: InvalidArgument.
    """
    return message(
        cache_pb2.LookupRequest,
        instance_id=instance_id,
        session_id=session_id,
        prefix=prefix_of(prefix),
        computed_tokens=computed_tokens,
        max_wait=duration(max_wait_seconds, "max_wait_seconds") if max_wait_seconds else None,
        prefill_tokens_per_second=prefill_tokens_per_second,
        will_continue=will_continue,
    )


def explain_prefix(
    prefix: PrefixLike, instance_id: str, model_name: str, tenant: str
) -> observability_pb2.ExplainPrefixRequest:
    """Return the request to explain a prompt.

    Raises: InvalidArgument.
    """
    return message(
        observability_pb2.ExplainPrefixRequest,
        instance_id=instance_id,
        model_name=model_name,
        prefix=prefix_of(prefix),
        tenant=tenant,
    )


def store(
    instance_id: str,
    rank: int,
    session_id: str,
    prefix: PrefixLike,
    block_tables: BlockTables,
    start_token: int,
    ready_event: bytes,
    will_continue: bool | None = None,
) -> cache_pb2.StoreRequest:
    """Return the request of a store.

    Raises: InvalidArgument.
    """
    return message(
        cache_pb2.StoreRequest,
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        prefix=prefix_of(prefix),
        start_token=start_token,
        block_tables=tables_of(block_tables),
        ready_event=ready_event,
        will_continue=will_continue,
    )


def retrieve(
    instance_id: str,
    rank: int,
    session_id: str,
    lease: LeaseLike,
    block_tables: BlockTables,
    skip_tokens: int,
    ready_event: bytes,
    accept_partial: bool = False,
) -> cache_pb2.RetrieveRequest:
    """Return the request of a retrieve.

    Raises: InvalidArgument.
    """
    return message(
        cache_pb2.RetrieveRequest,
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        lease_id=lease_id_of(lease),
        block_tables=tables_of(block_tables),
        skip_tokens=skip_tokens,
        ready_event=ready_event,
        accept_partial=accept_partial,
    )


def store_inline_header(
    instance_id: str,
    rank: int,
    session_id: str,
    prefix: PrefixLike,
    start_token: int,
    will_continue: bool | None = None,
) -> cache_pb2.StoreInlineRequest:
    """Return the first message of an inline store.

    Raises: InvalidArgument.
    """
    header = message(
        cache_pb2.StoreInlineHeader,
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        prefix=prefix_of(prefix),
        start_token=start_token,
        will_continue=will_continue,
    )
    return cache_pb2.StoreInlineRequest(header=header)


def retrieve_inline(
    instance_id: str, rank: int, session_id: str, lease: LeaseLike, skip_tokens: int
) -> cache_pb2.RetrieveInlineRequest:
    """Return the request of an inline retrieve.

    Raises: InvalidArgument.
    """
    return message(
        cache_pb2.RetrieveInlineRequest,
        instance_id=instance_id,
        rank=rank,
        session_id=session_id,
        lease_id=lease_id_of(lease),
        skip_tokens=skip_tokens,
    )


def release_lease(lease: LeaseLike) -> cache_pb2.ReleaseLeaseRequest:
    """Return the request that ends a lease.

    Raises: InvalidArgument.
    """
    return message(cache_pb2.ReleaseLeaseRequest, lease_id=lease_id_of(lease))


def end_session(instance_id: str, session_id: str) -> cache_pb2.EndSessionRequest:
    """Return the request that ends a session.

    Raises: InvalidArgument.
    """
    return message(cache_pb2.EndSessionRequest, instance_id=instance_id, session_id=session_id)


def tables_of(tables: BlockTables) -> list[BlockTable]:
    """Return the block tables of all groups.

    Raises: InvalidArgument.
    """
    try:
        numbered = enumerate(tables)
    except TypeError:
        raise wrong_tables(tables) from None
    return [table if isinstance(table, BlockTable) else _block_table(number, table) for number, table in numbered]


def lease_id_of(lease: LeaseLike) -> str:
    """Return a lease's id.

    Raises: InvalidArgument.
    """
    lease_id = lease if isinstance(lease, str) else getattr(lease, "lease_id", "")
    if not lease_id:
        raise wrong_lease(lease)
    return lease_id


def prefix_of(prefix: PrefixLike) -> Prefix:
    """Return a prompt.

    Raises: InvalidArgument.
    """
    return prefix if isinstance(prefix, Prefix) else token_prefix(prefix)


def _block_table(number: int, block_ids: Ids, absent_blocks: int = 0) -> BlockTable:
    table = message(BlockTable, absent_blocks=absent_blocks)
    num_absent = 0
    try:
        return with_ids(table, block_ids=block_ids)
    except (TypeError, ValueError) as error:
        try:
            num_absent = _num_absent(block_ids)
            table.Clear()
            table.absent_blocks = absent_blocks + num_absent
            return with_ids(table, block_ids=block_ids[num_absent:])
        except (TypeError, ValueError):
            rest = block_ids[num_absent:] if num_absent else block_ids
            raise wrong_table(number, rest, error, num_absent) from None


def _num_absent(block_ids: Any) -> int:
    """Return how many ids at the beginning are -1.

    Raises: TypeError.
    """
    ids = block_ids.tolist() if hasattr(block_ids, "tolist") else block_ids
    return next((index for index, block_id in enumerate(ids) if block_id != -1), len(ids))

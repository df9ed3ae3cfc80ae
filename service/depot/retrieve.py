"""Retrieve: leased chunks from L1 into an engine's blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt

from kernels.transfer import Direction
from service.depot.arrivals import Arrivals
from service.depot.block_tables import absent_tokens, check_present, check_tables, chunk_copy
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.leases import Lease
from service.depot.open_retrieve import open_retrieve, tokens_from_l2
from service.depot.transfer import Moved, TransferOwner, chunks_per_transfer, require_buffer, transfer_chunks
from service.depot.values import Miss, RetrieveAnswer, RetrieveRequest
from service.depot.verification import check_none_corrupt
from service.errors import BlockAbsent, ChunkLost, FieldViolation, InvalidRequest, invalid
from service.l1.chunk import Chunk
from telemetry.kinds import Hop, MissReason

MAX_SORTED_HERE = 16_384  # block ids: a millisecond


async def retrieve(depot: Depot, request: RetrieveRequest) -> RetrieveAnswer:
    """Copy leased chunks into blocks. Blocks below `skip_tokens` are never written.

    Chunks are compared with their checksums as they are copied. All are copied before the call fails for a corrupt one,
    so that its error names all of them. A chunk that is on its way from a tier is copied when it is there, while the
    tier reads those behind it. If it is lost, nothing behind it is copied.

    With `accept_partial` a chunk that is corrupt, lost, or lacks a block is no error: the answer ends before it. If the
    tables have absent blocks, no part of the prefix is right without the rest of it.

    Raises: ChunkCorrupt, ChunkLost, InvalidRequest, InstanceNotFound, RankNotFound, NoRegions, RegionUnavailable,
        BackendUnavailable, TransferFailed, Detached, LeaseNotFound, LeaseExpired, LeaseReleased, LeaseRevoked,
        SessionNotFound, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    require_buffer(attachment, request.ready_event)
    repeats = await _tables_with_repeats(attachment, request)
    lease = depot.lifetimes.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size, skip_tokens = attachment.chunk_size, request.skip_tokens
    num_tokens = _check_coverage(attachment, lease, request, repeats)
    first = skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first : num_tokens // chunk_size]
    if not request.accept_partial:
        _check_present(attachment, chunk_size, request, chunks, first)

    with open_retrieve(depot, lease, request, chunks, inline=False) as (session, operation):
        owner = TransferOwner(attachment=attachment, session=session, operation=operation, lease=lease)
        longest_wait_seconds = min(depot.limits.max_wait_seconds, request.longest_wait_seconds)
        arrivals = Arrivals(chunks, first, chunk_size, longest_wait_seconds)
        position = first
        miss: Miss | None = None
        while some := await arrivals.next(chunks_per_transfer(attachment)):
            # Again: what a chunk from a tier lacks is known only now.
            num_whole, miss = _present(attachment, chunk_size, request, some, position)
            if num_whole:
                moved = await _copy(depot, owner, request, some[:num_whole], position)
                operation.num_bytes += moved.num_bytes
                position += num_whole
            if miss is not None:
                break
        miss = miss or arrivals.miss
        copied = chunks[: position - first]
        may_be_shorter = _may_be_shorter(attachment, request)
        if not request.accept_partial:
            first_bad_token = None if may_be_shorter else skip_tokens
            check_none_corrupt(copied, first, chunk_size, first_bad_token=first_bad_token)
            if miss is not None:
                raise ChunkLost(miss.at_token if may_be_shorter else skip_tokens, miss.detail)
        miss = _first_corrupt(copied, first, chunk_size) or miss
        valid_tokens = num_tokens
        if miss is not None:
            valid_tokens = max(skip_tokens, miss.at_token) if may_be_shorter else skip_tokens
        operation.num_tokens = valid_tokens - skip_tokens
        operation.l2_tokens = tokens_from_l2(lease, skip_tokens, valid_tokens, chunk_size)
        operation.miss_reason = miss.reason if miss is not None else None
    return RetrieveAnswer(
        retrieved_tokens=operation.num_tokens,
        retrieved_bytes=operation.num_bytes,
        valid_tokens=valid_tokens,
        l2_tokens=operation.l2_tokens,
        miss=miss,
    )


async def _copy(
    depot: Depot, owner: TransferOwner, request: RetrieveRequest, chunks: Sequence[Chunk], first: int
) -> Moved:
    """Copy readable chunks, the first of which is at position `first`, and compare what was read of them."""
    attachment, chunk_size, tables = owner.attachment, owner.attachment.chunk_size, request.block_tables
    has_absent = any(table.absent_blocks for table in tables)
    copies = [
        chunk_copy(
            attachment,
            chunk_size,
            tables,
            position,
            chunk.slot.offset_bytes,
            request.skip_tokens,
            with_checksum=depot.verification.is_due_at_retrieve(
                chunk, reads_all=not (has_absent and absent_tokens(attachment, chunk_size, tables, position))
            ),
        )
        for position, chunk in enumerate(chunks, start=first)
    ]
    moved = await transfer_chunks(depot, owner, Direction.RETRIEVE, copies, request.ready_event)
    read = zip(chunks, copies, moved.checksums, strict=True)
    depot.verification.compare(
        ((chunk, checksum) for chunk, copy, checksum in read if copy.with_checksum), Hop.RETRIEVE
    )
    return moved


def _check_present(
    attachment: Attachment, chunk_size: int, request: RetrieveRequest, chunks: Sequence[Chunk], first: int
) -> None:
    """Check that chunks have what the tables name, as far as it is known. The first one is at position `first`.

    Raises: BlockAbsent.
    """
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            check_present(attachment, chunk_size, request.block_tables, position, chunk, request.skip_tokens)


def _present(
    attachment: Attachment, chunk_size: int, request: RetrieveRequest, chunks: Sequence[Chunk], first: int
) -> tuple[int, Miss | None]:
    """Return how many chunks have what the tables name, and the miss of the next one. None: all have it.

    Raises: BlockAbsent: it is an error for this call.
    """
    for number, chunk in enumerate(chunks):
        try:
            _check_present(attachment, chunk_size, request, [chunk], first + number)
        except BlockAbsent as error:
            if not request.accept_partial:
                raise
            at_token = (first + number) * chunk_size
            return number, Miss(reason=MissReason.NEVER_STORED, at_token=at_token, detail=str(error))
    return len(chunks), None


def _may_be_shorter(attachment: Attachment, request: RetrieveRequest) -> bool:
    """Return whether an engine can go on after a part of what the tables cover.

    With absent blocks it can't: the tables have the window, or the state, that goes with the whole prefix only.
    """
    return not any(
        table.absent_blocks * group.block_size > request.skip_tokens
        for table, group in zip(request.block_tables, attachment.groups, strict=True)
    )


def _first_corrupt(chunks: Sequence[Chunk], first: int, chunk_size: int) -> Miss | None:
    """Return the miss of the first corrupt chunk. None: there is none."""
    for position, chunk in enumerate(chunks, start=first):
        if chunk.is_corrupt:
            detail = "the bytes of the chunk are damaged"
            return Miss(reason=MissReason.CORRUPT, at_token=position * chunk_size, detail=detail)
    return None


async def _tables_with_repeats(attachment: Attachment, request: RetrieveRequest) -> set[int]:
    """Return the numbers of the tables in which a block that would be written occurs twice.

    Long tables are sorted in a thread. A wrong number of tables is refused elsewhere.
    """
    repeats: set[int] = set()
    for number, (table, group) in enumerate(zip(request.block_tables, attachment.groups, strict=False)):
        written = table.between(request.skip_tokens // group.block_size, len(table))
        is_long = len(written) > MAX_SORTED_HERE
        has_repeats = await asyncio.to_thread(_has_repeats, written) if is_long else _has_repeats(written)
        if has_repeats:
            repeats.add(number)
    return repeats


def _has_repeats(ids: npt.NDArray[np.int64]) -> bool:
    in_order = np.sort(ids)
    return bool((in_order[1:] == in_order[:-1]).any())


def _check_coverage(attachment: Attachment, lease: Lease, request: RetrieveRequest, repeats: Container[int]) -> int:
    """Return the number of tokens that the block tables cover: whole chunks of the lease, each block written once.

    Raises: InvalidRequest.
    """
    check_tables(attachment, request.block_tables)
    chunk_size = attachment.chunk_size
    leased_tokens = lease.num_chunks * chunk_size
    num_tokens = len(request.block_tables[0]) * attachment.groups[0].block_size
    if num_tokens == 0 or num_tokens % chunk_size or num_tokens > leased_tokens:
        raise invalid(
            "block_tables[0].block_ids",
            f"cover {num_tokens} tokens; whole chunks of {chunk_size} are expected, up to {leased_tokens} tokens",
        )
    if request.skip_tokens > num_tokens:
        raise invalid("skip_tokens", f"beyond the {num_tokens} tokens that the block tables cover")
    violations = []
    for number, (table, group) in enumerate(zip(request.block_tables, attachment.groups, strict=True)):
        field = f"block_tables[{number}].block_ids"
        if len(table) * group.block_size != num_tokens:
            violations.append(
                FieldViolation(field, f"cover {len(table) * group.block_size} tokens, others cover {num_tokens}")
            )
        if request.skip_tokens % group.block_size:
            violations.append(
                FieldViolation("skip_tokens", f"not a multiple of group {number}'s block_size {group.block_size}")
            )
        if number in repeats:
            violations.append(FieldViolation(field, "a block that would be written stands in it twice"))
    if violations:
        raise InvalidRequest(*violations)
    return num_tokens

"""Retrieve: leased chunks from L1 into an engine's blocks, or out on the call itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from kernels.transfer import Direction
from service.depot.block_tables import absent_tokens, check_present, check_tables, chunk_copy
from service.depot.chunk_index import unpinning
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.leases import Lease
from service.depot.operation import Operation
from service.depot.running_transfer import to_the_end
from service.depot.sessions import Session
from service.depot.trace_context import traceparent
from service.depot.transfer import TransferOwner, chunks_per_transfer, require_buffer, transfer_chunks
from service.depot.values import RetrieveAnswer, RetrieveInlineRequest, RetrieveRequest
from service.depot.verification import check_none_corrupt
from service.errors import BlockAbsent, Detached, FieldViolation, InvalidRequest, invalid
from service.l1.chunk import Chunk
from telemetry.events import RetrieveFinished, RetrieveStarted
from telemetry.kinds import Hop, OperationKind, Outcome

MAX_PIECE_BYTES = 1 << 20
MAX_TAIL_CHUNKS = 4_096  # whose stores an event names
MAX_SORTED_HERE = 16_384  # block ids: a millisecond
MAX_STORED_BY = 8  # stores that an event names


async def retrieve(depot: Depot, request: RetrieveRequest) -> RetrieveAnswer:
    """Copy leased chunks into blocks. Blocks below `skip_tokens` are never written.

    Chunks are compared with their checksums as they are copied. All are copied before the call fails for a corrupt one,
    so that its error names all of them.

    Raises: ChunkCorrupt, InvalidRequest, InstanceNotFound, RankNotFound, NoRegions, RegionUnavailable,
        BackendUnavailable, TransferFailed, Detached, LeaseNotFound, LeaseExpired, LeaseReleased, LeaseRevoked,
        SessionNotFound, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    require_buffer(attachment, request.ready_event)
    repeats = await _tables_with_repeats(attachment, request)
    lease = depot.lifetimes.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size, tables, skip_tokens = depot.limits.chunk_size, request.block_tables, request.skip_tokens
    num_tokens = _check_coverage(depot, attachment, lease, request, repeats)
    first = skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first : num_tokens // chunk_size]
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            check_present(attachment, chunk_size, tables, position, chunk, skip_tokens)

    at_once = chunks_per_transfer(attachment)
    has_absent = any(table.absent_blocks for table in tables)
    with _open(depot, lease, request, chunks, inline=False) as (session, operation):
        for begin in range(0, len(chunks), at_once):
            some = chunks[begin : begin + at_once]
            copies = [
                chunk_copy(
                    attachment,
                    chunk_size,
                    tables,
                    position,
                    chunk.slot.offset_bytes,
                    skip_tokens,
                    with_checksum=depot.verification.is_due_at_retrieve(
                        chunk, reads_all=not (has_absent and absent_tokens(attachment, chunk_size, tables, position))
                    ),
                )
                for position, chunk in enumerate(some, start=first + begin)
            ]
            owner = TransferOwner(attachment=attachment, session=session, operation=operation, lease=lease)
            moved = await transfer_chunks(depot, owner, Direction.RETRIEVE, copies, request.ready_event)
            operation.num_bytes += moved.num_bytes
            read = zip(some, copies, moved.checksums, strict=True)
            depot.verification.compare(
                ((chunk, checksum) for chunk, copy, checksum in read if copy.with_checksum), Hop.RETRIEVE
            )
        check_none_corrupt(chunks, first, chunk_size)
        operation.num_tokens = num_tokens - skip_tokens
    return RetrieveAnswer(retrieved_tokens=operation.num_tokens, retrieved_bytes=operation.num_bytes)


async def retrieve_inline(
    depot: Depot, request: RetrieveInlineRequest, send: Callable[[memoryview, int, int], Awaitable[None]]
) -> RetrieveAnswer:
    """Send leased chunks in pieces, by `send(data, chunk_index, offset_bytes)`. Each is compared before it is sent.

    Nothing is sent of a corrupt chunk, nor of those behind it. They are compared nevertheless, so that the error names
    all corrupt ones.

    `chunk_index` counts chunks from token 0. `offset_bytes` is where the piece begins in its chunk. `data` is L1's own
    memory: it may change after `send` returns.

    Raises: ChunkCorrupt, InvalidRequest, InstanceNotFound, RankNotFound, StreamStalled, Detached, LeaseNotFound,
        LeaseExpired, LeaseReleased, LeaseRevoked, SessionNotFound, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    lease = depot.lifetimes.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size, chunk_bytes = depot.limits.chunk_size, attachment.chunk_bytes
    if request.skip_tokens % chunk_size:
        raise invalid("skip_tokens", f"not a multiple of the depot's chunk_size {chunk_size}")
    if request.skip_tokens > lease.num_chunks * chunk_size:
        raise invalid("skip_tokens", f"beyond the {lease.num_chunks * chunk_size} leased tokens")
    first = request.skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first:]
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            raise BlockAbsent(f"of the chunk at token {position * chunk_size} some blocks were not stored")

    with (
        depot.quota.in_flight(len(chunks) * chunk_bytes),
        _open(depot, lease, request, chunks, inline=True) as (_, operation),
    ):
        has_corrupt = False
        for chunk_index, chunk in enumerate(chunks, start=first):
            _check_goes_on(attachment, lease)
            has_corrupt |= not await _is_intact(depot, chunk, chunk_bytes)
            if has_corrupt:
                continue
            for offset_bytes in range(0, chunk_bytes, MAX_PIECE_BYTES):
                _check_goes_on(attachment, lease)
                start = chunk.slot.offset_bytes + offset_bytes
                data = depot.l1[start : start + min(MAX_PIECE_BYTES, chunk_bytes - offset_bytes)]
                await depot.bounded(send(data, chunk_index, offset_bytes), "no piece was taken")
            operation.num_tokens += chunk_size
            operation.num_bytes += chunk_bytes
        check_none_corrupt(chunks, first, chunk_size)
    return RetrieveAnswer(retrieved_tokens=operation.num_tokens, retrieved_bytes=operation.num_bytes)


def _check_goes_on(attachment: Attachment, lease: Lease) -> None:
    """Check that the engine has not ended an inline retrieve.

    Raises: Detached, LeaseReleased.
    """
    if attachment.detached:
        raise Detached(f"rank {attachment.rank} detached while its bytes were being sent")
    if lease.ended_by_engine:
        raise lease.error()


async def _is_intact(depot: Depot, chunk: Chunk, chunk_bytes: int) -> bool:
    """Return whether a pinned chunk may be sent. Its bytes are read in a thread."""
    if not chunk.is_corrupt and depot.verification.is_due_at_retrieve(chunk, reads_all=True):
        reading = asyncio.to_thread(depot.backend.checksum, chunk.slot.offset_bytes, chunk_bytes)
        checksum = await to_the_end(asyncio.ensure_future(reading))  # the slot stays pinned until then
        depot.verification.compare([(chunk, checksum)], Hop.INLINE)
    return not chunk.is_corrupt


@contextmanager
def _open(
    depot: Depot,
    lease: Lease,
    request: RetrieveRequest | RetrieveInlineRequest,
    chunks: Sequence[Chunk],
    *,
    inline: bool,
) -> Iterator[tuple[Session, Operation]]:
    """Run a retrieve as an operation of its session, with pins on its chunks: the lease may expire meanwhile."""
    session = depot.sessions.require(request.instance_id, request.session_id)
    with depot.operation(
        session,
        OperationKind.RETRIEVE,
        request.rank,
        started=lambda operation: RetrieveStarted(
            instance_id=request.instance_id,
            session_id=request.session_id,
            operation_id=operation.operation_id,
            traceparent=traceparent.get(),
            rank=request.rank,
            lease_id=lease.lease_id,
            num_tokens=len(chunks) * depot.limits.chunk_size,
            skip_tokens=request.skip_tokens,
            stored_by=_stored_by(chunks),
            inline=inline,
        ),
        finished=lambda operation: RetrieveFinished(
            instance_id=request.instance_id,
            session_id=request.session_id,
            operation_id=operation.operation_id,
            rank=request.rank,
            duration_seconds=operation.duration_seconds,
            outcome=operation.outcome or "",
            retrieved_tokens=operation.num_tokens,
            retrieved_bytes=operation.num_bytes,
            l1_tokens=operation.num_tokens,
            l2_tokens=0,
        ),
    ) as operation:
        depot.index.pin(chunks)
        try:
            yield session, operation
        finally:
            depot.slices.run(unpinning(depot.index, [chunks]))
        operation.outcome = Outcome.OK


def _stored_by(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """Return the ids of the stores that made the tail of a prefix."""
    tail = chunks[-MAX_TAIL_CHUNKS:]
    return tuple(dict.fromkeys(chunk.stored_by for chunk in reversed(tail)))[:MAX_STORED_BY]


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


def _check_coverage(
    depot: Depot, attachment: Attachment, lease: Lease, request: RetrieveRequest, repeats: Container[int]
) -> int:
    """Return the number of tokens that the block tables cover: whole chunks of the lease, each block written once.

    Raises: InvalidRequest.
    """
    check_tables(attachment, request.block_tables)
    chunk_size = depot.limits.chunk_size
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

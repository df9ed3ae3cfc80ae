"""Retrieve: leased chunks from L1 into an engine's blocks, or out on the call itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from service.depot.block_tables import check_held, check_tables, chunk_move
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.leases import Lease
from service.depot.sessions import Operation, Session
from service.depot.trace_context import traceparent
from service.depot.transfer import check_ready_event, move, num_at_once, require_buffer
from service.depot.values import RetrieveAnswer, RetrieveInlineRequest, RetrieveRequest
from service.errors import BlockAbsent, Detached, FieldViolation, InvalidRequest, invalid
from service.l1.chunk import Chunk
from telemetry.events import RetrieveFinished, RetrieveStarted
from telemetry.kinds import OperationKind, Outcome

MAX_PIECE_BYTES = 1 << 20
MAX_LOOKED_AT = 4_096  # chunks of a prefix's tail, for who stored them
MAX_SORTED_HERE = 16_384  # block ids: a millisecond
MAX_STORED_BY = 8  # of the stores that made a prefix: those of its tail


async def retrieve(depot: Depot, request: RetrieveRequest) -> RetrieveAnswer:
    """Copy leased chunks into blocks; those below `skip_tokens` are never written.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, NoRegions, RegionUnavailable, Detached, LeaseNotFound,
        LeaseExpired, LeaseReleased, LeaseRevoked, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    require_buffer(attachment)
    check_ready_event(attachment, request.ready_event)
    repeats = await _tables_with_repeats(attachment, request)
    lease = depot.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size = depot.limits.chunk_size
    num_tokens = _check_coverage(depot, attachment, lease, request, repeats)
    first = request.skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first : num_tokens // chunk_size]
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            check_held(attachment, chunk_size, request.block_tables, position, chunk, request.skip_tokens)

    at_once = num_at_once(attachment)
    with _retrieval(depot, lease, request, chunks, inline=False) as (session, operation, answer):
        for begin in range(0, len(chunks), at_once):
            moves = [
                chunk_move(
                    attachment,
                    chunk_size,
                    request.block_tables,
                    position,
                    chunk.slot.offset_bytes,
                    request.skip_tokens,
                )
                for position, chunk in enumerate(chunks[begin : begin + at_once], start=first + begin)
            ]
            answer.retrieved_bytes += await move(
                depot,
                attachment,
                "retrieve",
                moves,
                session=session,
                operation=operation,
                ready_event=request.ready_event,
                lease=lease,
            )
        answer.retrieved_tokens = num_tokens - request.skip_tokens
    return answer


async def retrieve_inline(
    depot: Depot, request: RetrieveInlineRequest, send: Callable[[memoryview, int, int], Awaitable[None]]
) -> RetrieveAnswer:
    """Send leased chunks, as fast as `send` takes pieces: the bytes, of which chunk, and where in it they begin.

    The bytes are L1's own: they may change once `send` is done.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, StreamStalled, Detached, LeaseNotFound, LeaseExpired,
        LeaseReleased, LeaseRevoked, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    lease = depot.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size = depot.limits.chunk_size
    if request.skip_tokens % chunk_size:
        raise invalid("skip_tokens", f"not a multiple of the depot's chunk_size {chunk_size}")
    if request.skip_tokens > lease.num_chunks * chunk_size:
        raise invalid("skip_tokens", f"beyond the {lease.num_chunks * chunk_size} leased tokens")
    first = request.skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first:]
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            raise BlockAbsent(f"of the chunk at token {position * chunk_size} some blocks were not stored")

    num_bytes = len(chunks) * attachment.chunk_bytes
    with depot.quota.in_flight(num_bytes), _retrieval(depot, lease, request, chunks, inline=True) as (_, _, answer):
        for chunk_index, chunk in enumerate(chunks, start=first):
            for offset_bytes in range(0, attachment.chunk_bytes, MAX_PIECE_BYTES):
                if attachment.detached:
                    raise Detached(f"rank {attachment.rank} detached while its bytes were being sent")
                if lease.given_back:
                    raise lease.error()
                start = chunk.slot.offset_bytes + offset_bytes
                piece_bytes = min(MAX_PIECE_BYTES, attachment.chunk_bytes - offset_bytes)
                data = depot.l1[start : start + piece_bytes]
                await depot.bounded(send(data, chunk_index, offset_bytes), "no piece was taken")
            answer.retrieved_tokens += chunk_size
            answer.retrieved_bytes += attachment.chunk_bytes
    return answer


@contextmanager
def _retrieval(
    depot: Depot,
    lease: Lease,
    request: RetrieveRequest | RetrieveInlineRequest,
    chunks: Sequence[Chunk],
    *,
    inline: bool,
) -> Iterator[tuple[Session, Operation, RetrieveAnswer]]:
    """Note the operation, and pin its chunks: the lease may expire while they are read."""
    answer = RetrieveAnswer()

    def finished(operation: Operation) -> RetrieveFinished:
        return RetrieveFinished(
            instance_id=request.instance_id,
            session_id=request.session_id,
            operation_id=operation.operation_id,
            rank=request.rank,
            duration_seconds=operation.duration_seconds,
            outcome=operation.outcome or "",
            retrieved_tokens=answer.retrieved_tokens,
            retrieved_bytes=answer.retrieved_bytes,
            l1_tokens=answer.retrieved_tokens,
            l2_tokens=0,
        )

    session = depot.sessions.require(request.instance_id, request.session_id)
    with depot.operation(session, OperationKind.RETRIEVE, request.rank, finished) as operation:
        if depot.bus is not None:
            depot.bus.publish(
                RetrieveStarted(
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
                )
            )
        depot.index.pin(chunks)
        try:
            yield session, operation, answer
        finally:
            depot.slices.run(depot.index.unpinning([chunks]))
            operation.num_tokens = answer.retrieved_tokens
            operation.num_bytes = answer.retrieved_bytes
        operation.outcome = Outcome.OK


def _stored_by(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    tail = chunks[-MAX_LOOKED_AT:]
    return tuple(dict.fromkeys(chunk.stored_by for chunk in reversed(tail)))[:MAX_STORED_BY]


async def _tables_with_repeats(attachment: Attachment, request: RetrieveRequest) -> set[int]:
    """The numbers of the tables in which a block that would be written stands twice; long ones are sorted in a thread.

    Tables beyond the attachment's groups are somebody else's to refuse.
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
    """The tokens that the block tables cover, which must be whole chunks of the lease, each block written once."""
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

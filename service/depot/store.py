"""Store: whole chunks of a prefix into L1, from an engine's blocks or from the call itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from service.depot.block_tables import absent_tokens, check_tables, chunk_move
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.sessions import Operation, Session
from service.depot.store_plan import CHECK_EVERY, StorePlan
from service.depot.trace_context import traceparent
from service.depot.transfer import check_ready_event, move, num_at_once, require_buffer
from service.depot.values import StoreAnswer, StoreHeader, StoreRequest
from service.errors import Detached, FieldViolation, InvalidRequest, SessionNotFound, invalid
from service.l1.chunk import Chunk, PendingWrite
from telemetry.events import StoreFinished, StoreStarted
from telemetry.kinds import OperationKind, RefusalReason

Write = Callable[[StorePlan, Session, Operation], Awaitable[None]]


async def store(depot: Depot, request: StoreRequest) -> StoreAnswer:
    """Copy blocks into chunks; returns when they are visible to Lookup.

    Chunks that another store is writing are waited for, and written here if that one fails.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, NoRegions, RegionUnavailable, BackendUnavailable,
        TransferFailed, Detached, TooManyBytes, TooManySessions.
    """
    header = request.header
    attachment = depot.instances.require(header.instance_id).require_rank(header.rank)
    require_buffer(attachment)
    check_ready_event(attachment, request.ready_event)
    _check_header(depot, header)
    _check_coverage(depot, attachment, request)
    at_once = num_at_once(attachment)
    chunk_size = depot.limits.chunk_size

    async def write(plan: StorePlan, session: Session, operation: Operation) -> None:
        deadline = time.monotonic() + depot.limits.max_wait_seconds
        positions: Sequence[int] = plan.positions
        while positions:
            mine, others = await claimed(plan, positions)
            for first in range(0, len(mine), at_once):
                await write_some(plan, session, operation, mine[first : first + at_once])
            if mine:
                await plan.commit(depot.slices.pace())
            positions = await _wait_for_others(plan, others, deadline)

    async def claimed(
        plan: StorePlan, positions: Sequence[int]
    ) -> tuple[list[tuple[int, Chunk]], dict[int, PendingWrite]]:
        """Which chunks this store is to write, and who writes others."""
        pace = depot.slices.pace()
        mine: list[tuple[int, Chunk]] = []
        others: dict[int, PendingWrite] = {}
        for number, position in enumerate(positions):
            if number % CHECK_EVERY == 0 and pace.is_over():
                await pace.next()
            number_in_tables = position - plan.positions.start
            absent = absent_tokens(attachment, chunk_size, request.block_tables, number_in_tables)
            claim = plan.claim(position, absent)
            if isinstance(claim, Chunk):
                mine.append((position, claim))
            elif claim is not None:
                others[position] = claim
        return mine, others

    async def write_some(
        plan: StorePlan, session: Session, operation: Operation, chunks: Sequence[tuple[int, Chunk]]
    ) -> None:
        first = plan.positions.start
        moves = [
            chunk_move(attachment, chunk_size, request.block_tables, position - first, chunk.slot.offset_bytes)
            for position, chunk in chunks
        ]
        await move(
            depot,
            attachment,
            "store",
            moves,
            session=session,
            operation=operation,
            ready_event=request.ready_event,
        )

    return await _store(depot, attachment, header, write, inline=False)


async def store_inline(depot: Depot, header: StoreHeader, pieces: AsyncIterator[memoryview]) -> StoreAnswer:
    """Copy the bytes of `pieces` into chunks, one chunk after the other; visible when all of them came.

    The copies are made on the event loop: a piece is small, and a hop to a thread costs more than its copy.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, StreamStalled, Detached, TooManyBytes, TooManySessions.
    """
    attachment = depot.instances.require(header.instance_id).require_rank(header.rank)
    _check_header(depot, header)

    async def write(plan: StorePlan, session: Session, _operation: Operation) -> None:
        total_bytes = len(plan.positions) * attachment.chunk_bytes
        received_bytes = 0
        others: dict[int, PendingWrite] = {}
        chunk: Chunk | None = None
        pace = depot.slices.pace()
        while (rest := await depot.bounded(anext(pieces, None), "no data came")) is not None:
            if received_bytes + len(rest) > total_bytes:
                raise invalid("data", f"more than the {total_bytes} bytes of {len(plan.positions)} chunks")
            while rest:
                if pace.is_over():
                    await pace.next()
                if attachment.detached:
                    raise Detached(f"rank {attachment.rank} detached while its bytes were arriving")
                if session.end is not None:
                    raise SessionNotFound(header.instance_id, header.session_id)
                number, filled_bytes = divmod(received_bytes, attachment.chunk_bytes)
                if filled_bytes == 0:
                    # Claimed when its first byte comes, and not before: a silent client holds no slots.
                    position = plan.positions[number]
                    claim = plan.claim(position)
                    chunk = claim if isinstance(claim, Chunk) else None
                    if isinstance(claim, PendingWrite):
                        others[position] = claim
                part = rest[: attachment.chunk_bytes - filled_bytes]
                if chunk is not None:
                    start = chunk.slot.offset_bytes + filled_bytes
                    depot.l1[start : start + len(part)] = part
                received_bytes += len(part)
                rest = rest[len(part) :]
        if received_bytes < total_bytes:
            raise invalid("data", f"{received_bytes} of the {total_bytes} bytes of {len(plan.positions)} chunks")
        await plan.commit(pace)
        deadline = time.monotonic() + depot.limits.max_wait_seconds
        for position in await _wait_for_others(plan, others, deadline):
            if not plan.count_resident(position):
                plan.refuse(position, RefusalReason.STORE_TIMEOUT, "the call that was storing it failed")

    chunk_size = depot.limits.chunk_size
    num_chunks = header.prefix.num_tokens // chunk_size - header.start_token // chunk_size
    with depot.quota.in_flight(max(0, num_chunks) * attachment.chunk_bytes):
        return await _store(depot, attachment, header, write, inline=True)


async def _store(
    depot: Depot, attachment: Attachment, header: StoreHeader, write: Write, *, inline: bool
) -> StoreAnswer:
    plan: StorePlan | None = None

    def finished(operation: Operation) -> StoreFinished:
        answer = plan.answer if plan is not None else StoreAnswer()
        return StoreFinished(
            instance_id=header.instance_id,
            session_id=header.session_id,
            operation_id=operation.operation_id,
            rank=header.rank,
            duration_seconds=operation.duration_seconds,
            outcome=operation.outcome or "",
            stored_tokens=answer.stored_tokens,
            resident_tokens=answer.resident_tokens,
            refused_tokens=answer.refused_tokens,
            tail_tokens=answer.tail_tokens,
            stored_bytes=answer.stored_bytes,
            refusal_reason=answer.refusal.reason if answer.refusal is not None else "",
        )

    session = depot.session(header.instance_id, header.session_id, attachment.model_name)
    with depot.operation(session, OperationKind.STORE, header.rank, finished) as operation:
        if depot.bus is not None:
            depot.bus.publish(
                StoreStarted(
                    instance_id=header.instance_id,
                    session_id=header.session_id,
                    operation_id=operation.operation_id,
                    traceparent=traceparent.get(),
                    rank=header.rank,
                    num_tokens=header.prefix.num_tokens,
                    start_token=header.start_token,
                    inline=inline,
                )
            )
        plan = StorePlan(depot, attachment, header, operation.operation_id)
        try:
            await plan.pin_before_start(depot.slices.pace())
            await write(plan, session, operation)
        finally:
            plan.close()
            operation.num_tokens = plan.answer.stored_tokens
            operation.num_bytes = plan.answer.stored_bytes
        operation.outcome = plan.outcome()
    return plan.answer


async def _wait_for_others(plan: StorePlan, others: Mapping[int, PendingWrite], deadline: float) -> Sequence[int]:
    """Wait for other stores' chunks; returns those to decide about again. What is still being written is refused."""
    pending = {writer.done for writer in others.values()}
    if pending:
        await asyncio.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
    ended = [position for position, writer in others.items() if writer.done.done()]
    for position in others.keys() - set(ended):
        plan.refuse(position, RefusalReason.STORE_TIMEOUT, "another call that is storing it takes too long")
    return ended


def _check_header(depot: Depot, header: StoreHeader) -> None:
    depot.check_prefix(header.prefix, header.path)
    chunk_size = depot.limits.chunk_size
    if header.start_token % chunk_size:
        raise invalid(f"{header.path}start_token", f"not a multiple of the depot's chunk_size {chunk_size}")
    if header.start_token > header.prefix.num_tokens:
        raise invalid(f"{header.path}start_token", f"beyond the prefix's {header.prefix.num_tokens} tokens")


def _check_coverage(depot: Depot, attachment: Attachment, request: StoreRequest) -> None:
    check_tables(attachment, request.block_tables)
    chunk_size = depot.limits.chunk_size
    num_tokens = request.header.prefix.num_tokens - request.header.start_token
    whole_chunk_tokens = num_tokens // chunk_size * chunk_size
    violations = []
    for number, (table, group) in enumerate(zip(request.block_tables, attachment.groups, strict=True)):
        fewest, most = whole_chunk_tokens // group.block_size, -(-num_tokens // group.block_size)
        if not fewest <= len(table) <= most:
            violations.append(
                FieldViolation(
                    f"block_tables[{number}].block_ids",
                    f"{len(table)} blocks of {group.block_size} tokens for the {num_tokens} tokens from start_token on:"
                    f" {fewest} to {most} are expected",
                )
            )
    if violations:
        raise InvalidRequest(*violations)

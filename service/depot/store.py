"""Store: whole chunks of a prefix into L1, from an engine's blocks or from the call itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kernels.transfer import Direction
from service.depot.absent_bytes import zero_absent_bytes
from service.depot.block_tables import absent_tokens, check_tables, chunk_copy
from service.depot.depot import Depot
from service.depot.inline_checksum import InlineChecksum
from service.depot.instances import Attachment
from service.depot.open_store import CHUNKS_PER_PLAN, OpenStore
from service.depot.operation import Operation
from service.depot.recording import Stored
from service.depot.sessions import Session
from service.depot.trace_context import traceparent
from service.depot.transfer import TransferOwner, chunks_per_transfer, require_buffer, transfer_chunks
from service.depot.values import StoreAnswer, StoreHeader, StoreRequest
from service.errors import Detached, FieldViolation, InvalidRequest, SessionNotFound, invalid
from service.l1.chunk import Chunk, PendingWrite
from telemetry.events import StoreFinished, StoreStarted
from telemetry.kinds import OperationKind, RefusalReason


async def store(depot: Depot, request: StoreRequest) -> StoreAnswer:
    """Copy blocks into chunks. They are visible to Lookup when this returns.

    Chunks that another store writes are waited for, and written here if that store fails.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, BlockHashSeedMissing, NoRegions, RegionUnavailable,
        BackendUnavailable, TransferFailed, Detached, TooManyBytes, TooManySessions.
    """
    header, tables = request.header, request.block_tables
    attachment = depot.instances.require(header.instance_id).require_rank(header.rank)
    require_buffer(attachment, request.ready_event)
    _check_header(depot, attachment, header)
    _check_coverage(attachment, request)
    chunk_size = attachment.chunk_size
    at_once = chunks_per_transfer(attachment)
    with_checksums = depot.verification.verify.at_stores

    with _open(depot, attachment, header, inline=False) as (open_store, session, operation):
        pace = depot.slices.pace()
        await open_store.pin_before_start(pace)
        first = open_store.positions.start
        deadline = time.monotonic() + depot.limits.max_wait_seconds
        undecided: Sequence[int] = open_store.positions
        while undecided:
            pending: dict[int, PendingWrite] = {}
            reserved: list[tuple[int, Chunk]] = []
            for begin in range(0, len(undecided), CHUNKS_PER_PLAN):
                if pace.is_over():
                    await pace.next()
                plan = open_store.plan(
                    {
                        position: absent_tokens(attachment, chunk_size, tables, position - first)
                        for position in undecided[begin : begin + CHUNKS_PER_PLAN]
                    }
                )
                pending |= plan.pending
                reserved += plan.reserved.items()
            for begin in range(0, len(reserved), at_once):
                some = reserved[begin : begin + at_once]
                await zero_absent_bytes(depot.l1, attachment, [chunk for _, chunk in some], chunk_size)
                copies = [
                    chunk_copy(
                        attachment,
                        chunk_size,
                        tables,
                        position - first,
                        chunk.slot.offset_bytes,
                        with_checksum=with_checksums,
                    )
                    for position, chunk in some
                ]
                owner = TransferOwner(attachment=attachment, session=session, operation=operation)
                moved = await transfer_chunks(depot, owner, Direction.STORE, copies, request.ready_event)
                if with_checksums:
                    for (_, chunk), checksum in zip(some, moved.checksums, strict=True):
                        depot.verification.note_stored(chunk, checksum)
            if reserved:
                pace = depot.slices.pace()
                await open_store.commit(pace)
            undecided = await _wait_for(open_store, pending, deadline)
            pace = depot.slices.pace()
    return open_store.answer


async def store_inline(depot: Depot, header: StoreHeader, pieces: AsyncIterator[memoryview]) -> StoreAnswer:
    """Copy the bytes of `pieces` into chunks, one chunk after the other. All become visible when all pieces have come.

    The copies are made on the event loop: a piece is small, and a hop to a thread costs more than its copy.

    Raises: InvalidRequest, InstanceNotFound, RankNotFound, BlockHashSeedMissing, StreamStalled, Detached,
        TooManyBytes, TooManySessions.
    """
    attachment = depot.instances.require(header.instance_id).require_rank(header.rank)
    _check_header(depot, attachment, header)
    chunk_size, chunk_bytes = attachment.chunk_size, attachment.chunk_bytes
    num_chunks = max(0, header.prefix.num_tokens // chunk_size - header.start_token // chunk_size)
    total_bytes = num_chunks * chunk_bytes

    with (
        depot.quota.in_flight(total_bytes),
        _open(depot, attachment, header, inline=True) as (open_store, session, _),
    ):
        await open_store.pin_before_start(depot.slices.pace())
        received_bytes = 0
        pending: dict[int, PendingWrite] = {}
        chunk: Chunk | None = None
        checksum: InlineChecksum | None = None
        pace = depot.slices.pace()
        while (rest := await depot.bounded(anext(pieces, None), "no data came")) is not None:
            if received_bytes + len(rest) > total_bytes:
                raise invalid("data", f"more than the {total_bytes} bytes of {num_chunks} chunks")
            while rest:
                if pace.is_over():
                    await pace.next()
                if attachment.detached:
                    raise Detached(f"rank {attachment.rank} detached while its bytes were arriving")
                if session.end is not None:
                    raise SessionNotFound(header.instance_id, header.session_id)
                number, filled_bytes = divmod(received_bytes, chunk_bytes)
                if filled_bytes == 0:
                    # A chunk is reserved when its first byte has come, so that a silent client holds no slots.
                    position = open_store.positions[number]
                    plan = open_store.plan({position: ()})
                    pending |= plan.pending
                    chunk = plan.reserved.get(position)
                    if chunk is not None and depot.verification.verify.at_stores:
                        checksum = InlineChecksum(depot.backend, chunk, chunk_bytes)
                part = rest[: chunk_bytes - filled_bytes]
                if chunk is not None:
                    start = chunk.slot.offset_bytes + filled_bytes
                    depot.l1[start : start + len(part)] = part
                    if checksum is not None:
                        checksum.add(filled_bytes + len(part))
                        if filled_bytes + len(part) == chunk_bytes:
                            depot.verification.note_stored(chunk, checksum.value)
                received_bytes += len(part)
                rest = rest[len(part) :]
        if received_bytes < total_bytes:
            raise invalid("data", f"{received_bytes} of the {total_bytes} bytes of {num_chunks} chunks")
        await open_store.commit(pace)
        deadline = time.monotonic() + depot.limits.max_wait_seconds
        for position in await _wait_for(open_store, pending, deadline):
            if not open_store.count_resident(position):
                open_store.refuse(position, RefusalReason.STORE_TIMEOUT, "the call that was storing it failed")
    return open_store.answer


@contextmanager
def _open(
    depot: Depot, attachment: Attachment, header: StoreHeader, *, inline: bool
) -> Iterator[tuple[OpenStore, Session, Operation]]:
    """Run a store as an operation of its session, and close it at the end."""
    session = depot.lifetimes.session(header.instance_id, header.session_id, attachment.model_name)
    open_store = OpenStore(depot, attachment, header)
    with depot.operation(
        session,
        OperationKind.STORE,
        header.rank,
        started=lambda operation: StoreStarted(
            instance_id=header.instance_id,
            session_id=header.session_id,
            operation_id=operation.operation_id,
            traceparent=traceparent.get(),
            rank=header.rank,
            num_tokens=header.prefix.num_tokens,
            start_token=header.start_token,
            inline=inline,
        ),
        finished=lambda operation: _finished(header, operation, open_store.answer),
    ) as operation:
        session.note_will_continue(header.will_continue)
        open_store.open(
            operation.operation_id,
            session.request_of_transfer(depot.index.new_request),
            asked_tokens=session.asked_tokens,
            will_continue=session.will_continue,
        )
        try:
            yield open_store, session, operation
        except BaseException:
            open_store.has_failed = True
            raise
        finally:
            open_store.close()
            operation.num_tokens = open_store.answer.stored_tokens
            operation.num_bytes = open_store.answer.stored_bytes
            operation.refused_tokens = open_store.answer.refused_tokens
            refusal = open_store.answer.refusal
            operation.refusal_reason = refusal.reason if refusal is not None else None
        operation.outcome = open_store.outcome()
        if depot.recorder is not None and header.rank == 0:
            depot.recorder.note(Stored(request=session.request, prefix=header.prefix))


def _finished(header: StoreHeader, operation: Operation, answer: StoreAnswer) -> StoreFinished:
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


async def _wait_for(open_store: OpenStore, pending: Mapping[int, PendingWrite], deadline: float) -> Sequence[int]:
    """Wait for other stores' chunks. Return the positions to decide about again.

    Chunks that are still being written at the deadline (monotonic) are refused.
    """
    writes = {write.done for write in pending.values()}
    if writes:
        await asyncio.wait(writes, timeout=max(0.0, deadline - time.monotonic()))
    for position, write in pending.items():
        if not write.done.done():
            open_store.refuse(position, RefusalReason.STORE_TIMEOUT, "another call that is storing it takes too long")
    return [position for position, write in pending.items() if write.done.done()]


def _check_header(depot: Depot, attachment: Attachment, header: StoreHeader) -> None:
    depot.check_prefix(attachment, header.prefix, header.path)
    chunk_size = attachment.chunk_size
    if header.start_token % chunk_size:
        raise invalid(f"{header.path}start_token", f"not a multiple of the chunk_size {chunk_size}")
    if header.start_token > header.prefix.num_tokens:
        raise invalid(f"{header.path}start_token", f"beyond the prefix's {header.prefix.num_tokens} tokens")


def _check_coverage(attachment: Attachment, request: StoreRequest) -> None:
    check_tables(attachment, request.block_tables)
    chunk_size = attachment.chunk_size
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

"""Moving chunks between an attachment's blocks and L1."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from kernels.errors import RegionUnavailable as KernelsRegionUnavailable
from kernels.errors import TransferCancelled
from kernels.errors import TransferFailed as KernelsTransferFailed
from kernels.transfer import ChunkCopy
from service.depot.depot import Depot
from service.depot.instances import Attachment, MappedBuffer
from service.depot.leases import Lease
from service.depot.running_transfer import finished
from service.depot.sessions import Operation, Session
from service.errors import (
    BackendUnavailable,
    Detached,
    NoRegions,
    RegionUnavailable,
    SessionNotFound,
    TransferFailed,
)
from telemetry.events import TransferFinished, TransferStarted, TransferStep
from telemetry.kinds import Outcome

HOST = "host"
MOST_AT_ONCE = 1_024  # chunks of a rank with one group: a longer transfer is made as several
Direction = Literal["store", "retrieve"]


def require_buffer(attachment: Attachment) -> MappedBuffer:
    """The attachment's memory, which must be as large as when it was mapped.

    Raises: NoRegions, Detached; RegionUnavailable, with which the attachment ends.
    """
    if attachment.detached:
        raise Detached(f"rank {attachment.rank} has detached")
    if attachment.buffer is None:
        raise NoRegions(f"rank {attachment.rank} attached no memory, so its bytes can only be moved inline")
    try:
        attachment.buffer.check_size()
    except KernelsRegionUnavailable as error:
        raise attachment.fail(RegionUnavailable(str(error))) from error
    return attachment.buffer


def check_ready_event(attachment: Attachment, ready_event: bytes) -> None:
    """Raise BackendUnavailable if there is an event to wait for and nothing that can wait for it."""
    if ready_event and attachment.transfer_backend == HOST:
        raise BackendUnavailable("ready_event: this rank's memory is the host's, and has no CUDA events")


def num_at_once(attachment: Attachment) -> int:
    """How many chunks of a rank are moved in one transfer: to begin it takes a moment for each chunk and group."""
    return max(1, MOST_AT_ONCE // len(attachment.groups))


async def move(
    depot: Depot,
    attachment: Attachment,
    direction: Direction,
    moves: Sequence[ChunkCopy],
    *,
    session: Session,
    operation: Operation,
    ready_event: bytes,
    lease: Lease | None = None,
) -> int:
    """Carry the moves out; returns the bytes moved. When this has ended, blocks and slots are not touched any more.

    Raises: Detached, SessionNotFound or the lease's error if one of these ends meanwhile; TransferFailed if the device
        fails and RegionUnavailable if the engine took its memory away, with which the attachment ends; TooManyBytes.
    """
    buffer = require_buffer(attachment)
    if lease is not None and lease.given_back:
        raise lease.error()
    if session.end is not None:
        raise SessionNotFound(session.instance_id, session.session_id)
    num_bytes = sum(
        len(ids) * group.block_size * group.token_bytes
        for each in moves
        for ids, group in zip(each.block_ids, attachment.groups, strict=True)
    )
    with depot.quota.in_flight(num_bytes):
        start = time.monotonic()
        start_move = depot.backend.gather if direction == "store" else depot.backend.scatter
        transfer = start_move(buffer, moves, ready_event)
        operation_id = depot.new_operation_id()
        if depot.bus is not None:
            depot.bus.publish(
                TransferStarted(
                    instance_id=attachment.instance_id,
                    session_id=session.session_id,
                    operation_id=operation_id,
                    parent_operation_id=operation.operation_id,
                    direction=direction,
                    rank=attachment.rank,
                    num_chunks=len(moves),
                    num_bytes=num_bytes,
                    backend=attachment.transfer_backend,
                )
            )
        holders = [attachment.transfers, session.transfers]
        if lease is not None:
            holders.append(lease.transfers)
        for holder in holders:
            holder.add(transfer)
        outcome = Outcome.CANCELLED
        try:
            await finished(transfer)
            outcome = Outcome.OK
        except TransferCancelled as error:
            if attachment.detached:
                raise Detached(f"rank {attachment.rank} detached while its bytes were being moved") from error
            if lease is not None and lease.end is not None:
                raise lease.error() from error
            raise SessionNotFound(session.instance_id, session.session_id) from error
        except KernelsTransferFailed as error:
            outcome = Outcome.FAILED
            raise attachment.fail(TransferFailed(str(error))) from error
        except KernelsRegionUnavailable as error:
            outcome = Outcome.FAILED
            raise attachment.fail(RegionUnavailable(str(error))) from error
        except Exception:
            outcome = Outcome.FAILED
            raise
        finally:
            for holder in holders:
                holder.discard(transfer)
            if depot.bus is not None:
                depot.bus.publish(
                    TransferFinished(
                        instance_id=attachment.instance_id,
                        session_id=session.session_id,
                        operation_id=operation_id,
                        parent_operation_id=operation.operation_id,
                        direction=direction,
                        rank=attachment.rank,
                        duration_seconds=time.monotonic() - start,
                        outcome=outcome,
                        num_chunks=len(moves),
                        num_bytes=num_bytes,
                        backend=attachment.transfer_backend,
                        steps=tuple(
                            TransferStep(
                                name=step.name,
                                start_seconds=step.start_seconds,
                                duration_seconds=step.duration_seconds,
                            )
                            for step in transfer.steps
                        ),
                    )
                )
    return num_bytes

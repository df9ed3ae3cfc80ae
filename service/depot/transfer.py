"""Transfers between an attachment's blocks and L1."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import kernels.errors
from kernels.copies import ChunkCopy
from kernels.transfer import Direction, Transfer
from service.depot.depot import Depot
from service.depot.instances import Attachment, MappedBuffer
from service.depot.leases import Lease
from service.depot.operation import Operation
from service.depot.running_transfer import finished
from service.depot.sessions import Session
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

MAX_GROUP_CHUNKS = 1_024
"""The limit on chunks times groups of one transfer: its start does some work for each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOwner:
    """What a transfer belongs to. The end of one of these cancels the transfer. Only a retrieve has a lease."""

    attachment: Attachment
    session: Session
    operation: Operation
    lease: Lease | None = None

    def check(self) -> None:
        """Check that the engine has ended neither the lease nor the session.

        Raises: SessionNotFound, LeaseReleased.
        """
        if self.lease is not None and self.lease.ended_by_engine:
            raise self.lease.error()
        if self.session.end is not None:
            raise SessionNotFound(self.session.instance_id, self.session.session_id)

    @contextmanager
    def holding(self, transfer: Transfer) -> Iterator[None]:
        """Let each part of the owner cancel the transfer while the block runs."""
        holders = [self.attachment.transfers, self.session.transfers]
        if self.lease is not None:
            holders.append(self.lease.transfers)
        for holder in holders:
            holder.add(transfer)
        try:
            yield
        finally:
            for holder in holders:
                holder.discard(transfer)

    @contextmanager
    def mapping_errors(self) -> Iterator[None]:
        """Raise the depot's errors instead of the kernels'. An attachment whose memory or device failed ends.

        Raises: Detached, SessionNotFound, LeaseReleased, LeaseExpired, LeaseRevoked, TransferFailed, RegionUnavailable.
        """
        attachment = self.attachment
        try:
            yield
        except kernels.errors.TransferCancelled as error:
            if attachment.detached:
                raise Detached(f"rank {attachment.rank} detached while its bytes were being moved") from error
            if self.lease is not None and self.lease.end is not None:
                raise self.lease.error() from error
            raise SessionNotFound(self.session.instance_id, self.session.session_id) from error
        except kernels.errors.DeviceFailed as error:
            raise attachment.fail(TransferFailed(str(error))) from error
        except kernels.errors.RegionError as error:
            raise attachment.fail(RegionUnavailable(str(error))) from error


class Moved(NamedTuple):
    """What a transfer has moved. `checksums` has one for each copy that asked for it, and 0 for the others."""

    num_bytes: int
    checksums: Sequence[int]


def require_buffer(attachment: Attachment, ready_event: bytes) -> MappedBuffer:
    """Return the attachment's memory. Check its size, and that it can wait for the event if there is one.

    RegionUnavailable ends the attachment.

    Raises: NoRegions, Detached, BackendUnavailable, RegionUnavailable.
    """
    if attachment.detached:
        raise Detached(f"rank {attachment.rank} has detached")
    if attachment.buffer is None:
        raise NoRegions(f"rank {attachment.rank} attached no memory, so its bytes can only be moved inline")
    try:
        attachment.buffer.check_size()
    except kernels.errors.RegionError as error:
        raise attachment.fail(RegionUnavailable(str(error))) from error
    if ready_event and not attachment.buffer.can_wait_for_events:
        raise BackendUnavailable("ready_event: this rank's memory is the host's, and has no CUDA events")
    return attachment.buffer


def chunks_per_transfer(attachment: Attachment) -> int:
    """Return how many chunks of a rank one transfer copies; a store or retrieve of more makes several."""
    return max(1, MAX_GROUP_CHUNKS // len(attachment.groups))


async def transfer_chunks(
    depot: Depot, owner: TransferOwner, direction: Direction, copies: Sequence[ChunkCopy], ready_event: bytes
) -> Moved:
    """Carry out copies. After the end, nothing touches the blocks and slots.

    Raises: TooManyBytes, NoRegions, Detached, BackendUnavailable, RegionUnavailable, TransferFailed, SessionNotFound,
        LeaseReleased, LeaseExpired, LeaseRevoked.
    """
    buffer = require_buffer(owner.attachment, ready_event)
    owner.check()
    num_bytes = _num_bytes(owner.attachment, copies)
    with depot.quota.in_flight(num_bytes):
        start = time.monotonic()
        begin = buffer.store if direction is Direction.STORE else buffer.retrieve
        transfer = begin(copies, ready_event)
        with (
            owner.mapping_errors(),
            _published(depot, owner, direction, transfer, start, len(copies), num_bytes),
            owner.holding(transfer),
        ):
            await finished(transfer)
    return Moved(num_bytes, transfer.checksums.tolist())


def _num_bytes(attachment: Attachment, copies: Sequence[ChunkCopy]) -> int:
    return sum(
        len(ids) * group.block_size * group.token_bytes
        for copy in copies
        for ids, group in zip(copy.block_ids, attachment.groups, strict=True)
    )


@contextmanager
def _published(
    depot: Depot,
    owner: TransferOwner,
    direction: Direction,
    transfer: Transfer,
    start: float,
    num_chunks: int,
    num_bytes: int,
) -> Iterator[None]:
    """Publish that a transfer has started, and after the block how it has finished."""
    operation_id = depot.new_operation_id()
    depot.bus.publish(
        TransferStarted(
            instance_id=owner.attachment.instance_id,
            session_id=owner.session.session_id,
            operation_id=operation_id,
            parent_operation_id=owner.operation.operation_id,
            direction=direction,
            rank=owner.attachment.rank,
            num_chunks=num_chunks,
            num_bytes=num_bytes,
            backend=owner.attachment.transfer_backend,
        )
    )
    outcome = Outcome.CANCELLED
    try:
        yield
        outcome = Outcome.OK
    except kernels.errors.TransferCancelled:
        raise
    except Exception:
        outcome = Outcome.FAILED
        raise
    finally:
        depot.bus.publish(
            TransferFinished(
                instance_id=owner.attachment.instance_id,
                session_id=owner.session.session_id,
                operation_id=operation_id,
                parent_operation_id=owner.operation.operation_id,
                direction=direction,
                rank=owner.attachment.rank,
                duration_seconds=time.monotonic() - start,
                outcome=outcome,
                num_chunks=num_chunks,
                num_bytes=num_bytes,
                backend=owner.attachment.transfer_backend,
                steps=tuple(
                    TransferStep(
                        name=phase.name,
                        start_seconds=phase.start_seconds,
                        duration_seconds=phase.duration_seconds,
                    )
                    for phase in transfer.phases
                ),
            )
        )

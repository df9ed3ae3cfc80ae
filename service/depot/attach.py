"""Attach: an engine's memory is mapped, a rank registered, and all of it undone when the attachment ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import kernels.errors
from kernels.geometry import CudaIpc
from kernels.plan import check_groups, chunk_bytes
from service.depot.depot import Depot
from service.depot.instances import Attachment, MappedBuffer
from service.depot.memory_objects import AttachedMemory, most_objects
from service.depot.running_transfer import stopped, to_the_end
from service.depot.values import AttachRequest
from service.errors import (
    BackendUnavailable,
    ChunkSizeMismatch,
    ChunkTooLarge,
    DepotError,
    RankAttached,
    RegionForbidden,
    RegionUnavailable,
    invalid,
)
from service.l1.keys import RankIdentity
from service.l1.pool import slot_bytes_for
from telemetry.events import InstanceAttached, InstanceDetached
from telemetry.kinds import DetachReason, LeaseEnd, SessionEnd

PLACE_WAIT_SECONDS = 1.0
MAPPER_THREADS = 4

Place = tuple[str, str, int]
"""Of a rank: its tenant, its instance, its number."""

_ERRORS: dict[type[Exception], type[DepotError]] = {
    kernels.errors.RegionUnavailable: RegionUnavailable,
    kernels.errors.RegionForbidden: RegionForbidden,
    kernels.errors.BackendUnavailable: BackendUnavailable,
}


class Attacher:
    """Attaches ranks, each (tenant, instance_id, rank) once at a time; memory that one tenant has, no other gets.

    The names of shared memory are no secrets, and the depot can open what a tenant itself could not.
    """

    def __init__(self, *, cuda_over_tcp: bool) -> None:
        self._cuda_over_tcp = cuda_over_tcp
        self._places: dict[Place, asyncio.Future[None]] = {}
        self._memory = AttachedMemory(most_objects())
        # Apart, so that the memory of an engine that died is not kept until others have been mapped.
        self._mappers = ThreadPoolExecutor(MAPPER_THREADS, thread_name_prefix="kvdepot-map")
        self._unmappers = ThreadPoolExecutor(MAPPER_THREADS, thread_name_prefix="kvdepot-unmap")

    @asynccontextmanager
    async def attached(self, depot: Depot, request: AttachRequest) -> AsyncIterator[Attachment]:
        """Keep a rank of a tenant attached for as long as the block runs.

        When the block ends, whichever way, the rank's transfers are stopped, its leases ended, its memory unmapped, in
        this order, and this is not cut short by a cancellation.

        Raises: InvalidRequest, ChunkSizeMismatch, ChunkTooLarge, RankAttached, InstanceMismatch, RegionUnavailable,
            RegionForbidden, BackendUnavailable, TooManyObjects.
        """
        # In a thread: to prove that a thousand planes are apart takes a while.
        one_chunk_bytes = await asyncio.get_running_loop().run_in_executor(self._mappers, self._check, depot, request)
        place = (depot.tenant, request.instance_id, request.rank)
        await self._wait_for(place)
        free = self._places[place] = asyncio.get_running_loop().create_future()
        try:
            depot.instances.check_fits(request.instance_id, request.model_name, request.world_size)
            buffer = await self._map(depot, request)
            try:
                with self._memory.attached(buffer.objects if buffer is not None else (), depot.tenant):
                    # Looked at again: another rank of the instance may have attached while this one was mapped.
                    depot.instances.check_fits(request.instance_id, request.model_name, request.world_size)
                    attachment = Attachment(
                        instance_id=request.instance_id,
                        model_name=request.model_name,
                        world_size=request.world_size,
                        rank=request.rank,
                        groups=request.groups,
                        identity=RankIdentity.of(
                            request.model_name, request.world_size, request.rank, request.groups, depot.tenant
                        ),
                        chunk_bytes=one_chunk_bytes,
                        slot_bytes=slot_bytes_for(one_chunk_bytes),
                        buffer=buffer,
                        transfer_backend=buffer.transfer_backend if buffer is not None else "inline",
                    )
                    depot.instances.add(attachment)
                    _publish_attached(depot, attachment)
                    try:
                        yield attachment
                    finally:
                        removed = _remove(depot, attachment)
                        await stopped(list(attachment.transfers))
                        if removed is not None:
                            await to_the_end(removed)
            finally:
                if buffer is not None:
                    await to_the_end(asyncio.get_running_loop().run_in_executor(self._unmappers, buffer.close))
        finally:
            del self._places[place]
            free.set_result(None)

    async def detach(self, depot: Depot, instance_id: str, rank: int) -> None:
        """End a rank's attachment in order, and wait until nothing is left of it.

        Raises: InstanceNotFound, RankNotFound, StreamStalled.
        """
        attachment = depot.instances.require(instance_id).require_rank(rank)
        attachment.closing.set()
        ended = asyncio.shield(self._places[depot.tenant, instance_id, rank])
        await depot.bounded(ended, f"rank {rank} of instance {instance_id!r} has been detaching")

    async def all_detached(self) -> None:
        """Wait until no rank is attached."""
        while self._places:
            await asyncio.wait(list(self._places.values()))

    def _check(self, depot: Depot, request: AttachRequest) -> int:
        chunk_size = depot.limits.chunk_size
        region_sizes = [region.size_bytes for region in request.regions]
        try:
            check_groups(request.groups, region_sizes, chunk_size)
        except kernels.errors.GeometryError as error:
            raise invalid(error.field, error.description) from error
        for number, group in enumerate(request.groups):
            if chunk_size % group.block_size:
                raise ChunkSizeMismatch(
                    f"the depot's chunk_size {chunk_size} is not a multiple of group {number}'s block_size "
                    f"{group.block_size}"
                )
        has_cuda = any(isinstance(region.handle, CudaIpc) for region in request.regions)
        if has_cuda and not (request.peer_is_known or self._cuda_over_tcp):
            raise RegionForbidden(
                "a cuda_ipc handle is taken over a unix socket or from a client with a certificate; "
                "from others with --cuda-over-tcp"
            )
        one_chunk_bytes = chunk_bytes(request.groups, chunk_size)
        if slot_bytes_for(one_chunk_bytes) > len(depot.l1):
            raise ChunkTooLarge(f"one chunk has {one_chunk_bytes} bytes, all of L1 has {len(depot.l1)}")
        return one_chunk_bytes

    async def _wait_for(self, place: Place) -> None:
        try:
            async with asyncio.timeout(PLACE_WAIT_SECONDS):
                while place in self._places:
                    await asyncio.shield(self._places[place])
        except TimeoutError as error:
            _, instance_id, rank = place
            raise RankAttached(f"rank {rank} of instance {instance_id!r} is attached by a live stream") from error

    async def _map(self, depot: Depot, request: AttachRequest) -> MappedBuffer | None:
        if not request.regions:
            return None
        backend = depot.backend
        mapping = asyncio.get_running_loop().run_in_executor(
            self._mappers,
            lambda: backend.attach(
                request.groups,
                request.regions,
                depot.limits.chunk_size,
                allow_process_fd=request.peer_is_known,
            ),
        )
        try:
            return await to_the_end(mapping)
        except asyncio.CancelledError:
            if mapping.exception() is None:
                buffer = mapping.result()
                await to_the_end(asyncio.get_running_loop().run_in_executor(self._unmappers, buffer.close))
            raise
        except kernels.errors.GeometryError as error:
            raise invalid(error.field, error.description) from error
        except tuple(_ERRORS) as error:
            raise _ERRORS[type(error)](str(error)) from error


def _remove(depot: Depot, attachment: Attachment) -> asyncio.Future[None] | None:
    """Take the rank out now, and end its leases, and with the last rank the instance's sessions.

    Returns a future that ends when all of these have; None if they have.
    """
    attachment.detached = True
    leases = [lease for lease in depot.leases.live() if lease.instance_id == attachment.instance_id]
    num_ranks_left = depot.instances.remove(attachment)
    sessions = [] if num_ranks_left else depot.sessions.of_instance(attachment.instance_id)
    reason = _reason(attachment, depot.draining, has_work=bool(leases or sessions))

    def ending() -> Iterator[None]:
        for lease in leases:
            if lease.end is None:
                depot.end_lease(lease, LeaseEnd.INSTANCE_DETACHED)
                yield
        for session in sessions:
            if session.end is None:
                depot.close_session(session, SessionEnd.INSTANCE_DETACHED)
                yield
        if depot.bus is not None:
            depot.bus.publish(
                InstanceDetached(
                    instance_id=attachment.instance_id,
                    model_name=attachment.model_name,
                    rank=attachment.rank,
                    reason=reason,
                    num_ranks_left=num_ranks_left,
                )
            )

    return depot.slices.run(ending())


def _publish_attached(depot: Depot, attachment: Attachment) -> None:
    if depot.bus is not None:
        depot.bus.publish(
            InstanceAttached(
                instance_id=attachment.instance_id,
                model_name=attachment.model_name,
                world_size=attachment.world_size,
                rank=attachment.rank,
                chunk_bytes=attachment.chunk_bytes,
                mapped_bytes=attachment.buffer.mapped_bytes if attachment.buffer is not None else 0,
                transfer_backend=attachment.transfer_backend,
            )
        )


def _reason(attachment: Attachment, draining: bool, *, has_work: bool) -> DetachReason:
    """The end of a stream does not tell whether its client closed it or died: one that left work is taken for dead."""
    if attachment.failed.is_set():
        return DetachReason.FAILED
    if draining:
        return DetachReason.DRAINED
    if attachment.closing.is_set():
        return DetachReason.CLOSED
    return DetachReason.LOST if has_work or attachment.transfers else DetachReason.CLOSED

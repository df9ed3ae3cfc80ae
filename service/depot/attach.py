"""Attach: an engine's memory is mapped and its rank registered, until the attachment ends."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import kernels.errors
from kernels.geometry import CudaIpc
from kernels.plan import check_groups, chunk_bytes
from service.depot.chunk_size import chunk_size_for
from service.depot.depot import Depot
from service.depot.instances import Attachment, MappedBuffer
from service.depot.memory_objects import AttachedMemory, max_objects_of_process
from service.depot.running_transfer import stopped, to_the_end
from service.depot.values import AttachRequest
from service.errors import (
    BackendUnavailable,
    ChunkTooLarge,
    DepotError,
    RankAttached,
    RegionForbidden,
    RegionUnavailable,
    invalid,
)
from service.l1.keys import RankIdentity
from service.l1.pool import slot_bytes_for
from service.units import format_size
from telemetry.events import InstanceAttached, InstanceDetached
from telemetry.kinds import DetachReason, LeaseEnd, SessionEnd

DETACH_WAIT_SECONDS = 1.0
MAPPER_THREADS = 4

RankId = tuple[str, str, int]
"""`(tenant, instance_id, rank)`"""

_ERRORS: dict[type[Exception], type[DepotError]] = {
    kernels.errors.RegionError: RegionUnavailable,
    kernels.errors.AccessDenied: RegionForbidden,
    kernels.errors.BackendError: BackendUnavailable,
}


def depot_error(error: Exception) -> DepotError:
    """Return the depot's error for one of the kernels'."""
    return next(ours for theirs, ours in _ERRORS.items() if isinstance(error, theirs))(str(error))


class Attacher:
    """The attachments of all tenants. A rank has one at a time, and no memory is attached for two tenants.

    The names of shared memory are no secrets, and the depot can open memory that a tenant itself can't open.
    """

    def __init__(self, *, cuda_over_tcp: bool) -> None:
        self._cuda_over_tcp = cuda_over_tcp
        self._ended: dict[RankId, asyncio.Future[None]] = {}
        self._memory = AttachedMemory(max_objects_of_process())
        # Two pools, so that the memory of a dead engine does not wait until others have been mapped.
        self._mappers = ThreadPoolExecutor(MAPPER_THREADS, thread_name_prefix="kvdepot-map")
        self._unmappers = ThreadPoolExecutor(MAPPER_THREADS, thread_name_prefix="kvdepot-unmap")

    @asynccontextmanager
    async def attached(self, depot: Depot, request: AttachRequest) -> AsyncIterator[Attachment]:
        """Keep a rank of a tenant attached while the block runs.

        At the end the rank is removed, its leases end, its transfers are stopped and its memory is unmapped, in this
        order. No cancellation cuts this short.

        Raises: InvalidRequest, ChunkSizeMismatch, ChunkTooLarge, RankAttached, InstanceMismatch, RegionUnavailable,
            RegionForbidden, BackendUnavailable, TooManyObjects.
        """
        # In a thread: it takes long to check that a thousand planes do not overlap.
        loop = asyncio.get_running_loop()
        chunk_size, one_chunk_bytes = await loop.run_in_executor(self._mappers, self._check, depot, request)
        request = dataclasses.replace(request, chunk_size=chunk_size)
        rank_id = (depot.tenant, request.instance_id, request.rank)
        await self._wait_until_free(rank_id)
        ended = self._ended[rank_id] = loop.create_future()
        try:
            depot.instances.check_fits(request)
            buffer = await self._map(depot, request)
            try:
                with self._memory.hold(buffer.objects if buffer is not None else (), depot.tenant):
                    # Again: another rank of the instance may have attached while this one was mapped.
                    depot.instances.check_fits(request)
                    attachment = Attachment(
                        instance_id=request.instance_id,
                        model_name=request.model_name,
                        world_size=request.world_size,
                        rank=request.rank,
                        groups=request.groups,
                        identity=RankIdentity.of(
                            request.model_name,
                            request.world_size,
                            request.rank,
                            request.groups,
                            chunk_size,
                            depot.tenant,
                            model_revision=request.model_revision,
                            block_hash_seed=request.block_hash_seed,
                            cache_epoch=depot.limits.cache_epoch,
                        ),
                        chunk_bytes=one_chunk_bytes,
                        slot_bytes=slot_bytes_for(one_chunk_bytes),
                        buffer=buffer,
                        transfer_backend=buffer.transfer_backend if buffer is not None else "inline",
                        model_revision=request.model_revision,
                        block_hash_seed=request.block_hash_seed,
                        prefill_tokens_per_second=request.prefill_tokens_per_second,
                    )
                    depot.instances.add(attachment)
                    _publish_attached(depot, attachment, request.prefill_tokens_per_second)
                    try:
                        yield attachment
                    finally:
                        removed = _remove(depot, attachment)
                        await stopped(list(attachment.transfers))
                        if removed is not None:
                            await to_the_end(removed)
            finally:
                if buffer is not None:
                    await to_the_end(loop.run_in_executor(self._unmappers, buffer.close))
        finally:
            del self._ended[rank_id]
            ended.set_result(None)

    async def detach(self, depot: Depot, instance_id: str, rank: int) -> None:
        """End a rank's attachment, and wait until its memory is unmapped.

        Raises: InstanceNotFound, RankNotFound, StreamStalled.
        """
        attachment = depot.instances.require(instance_id).require_rank(rank)
        attachment.closing.set()
        ended = asyncio.shield(self._ended[depot.tenant, instance_id, rank])
        await depot.bounded(ended, f"rank {rank} of instance {instance_id!r} has been detaching")

    async def all_detached(self) -> None:
        """Wait until no rank is attached."""
        while self._ended:
            await asyncio.wait(list(self._ended.values()))

    def _check(self, depot: Depot, request: AttachRequest) -> tuple[int, int]:
        """Check the request. Return the tokens and the bytes of one chunk.

        Raises: InvalidRequest, ChunkSizeMismatch, ChunkTooLarge, RegionForbidden.
        """
        region_sizes = [region.size_bytes for region in request.regions]
        try:
            check_groups(request.groups, region_sizes)
            chunk_size = chunk_size_for(request.groups, request.chunk_size, depot.limits.chunk_size)
            one_chunk_bytes = chunk_bytes(request.groups, chunk_size)
        except kernels.errors.GeometryError as error:
            raise invalid(error.field, error.description) from error
        has_cuda = any(isinstance(region.handle, CudaIpc) for region in request.regions)
        if has_cuda and not (request.peer_is_known or self._cuda_over_tcp):
            raise RegionForbidden(
                "a cuda_ipc handle is taken over a unix socket or from a client with a certificate; "
                "from others with --cuda-over-tcp"
            )
        if slot_bytes_for(one_chunk_bytes) > len(depot.l1):
            raise ChunkTooLarge(f"one chunk has {one_chunk_bytes:,} bytes, all of L1 has {format_size(len(depot.l1))}")
        return chunk_size, one_chunk_bytes

    async def _wait_until_free(self, rank_id: RankId) -> None:
        try:
            async with asyncio.timeout(DETACH_WAIT_SECONDS):
                while rank_id in self._ended:
                    await asyncio.shield(self._ended[rank_id])
        except TimeoutError as error:
            _, instance_id, rank = rank_id
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
                request.chunk_size,
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
            raise depot_error(error) from error


def _remove(depot: Depot, attachment: Attachment) -> asyncio.Future[None] | None:
    """Remove the rank at once. End its instance's leases, and with the last rank its sessions.

    Return a future that ends when all of these have ended. None: they have already.
    """
    attachment.detached = True
    leases = [lease for lease in depot.leases.live() if lease.instance_id == attachment.instance_id]
    num_ranks_left = depot.instances.remove(attachment)
    sessions = [] if num_ranks_left else depot.sessions.of_instance(attachment.instance_id)
    reason = _reason(attachment, depot.draining, has_work=bool(leases or sessions))

    def ending() -> Iterator[None]:
        for lease in leases:
            if lease.end is None:
                depot.lifetimes.end_lease(lease, LeaseEnd.INSTANCE_DETACHED)
                yield
        for session in sessions:
            if session.end is None:
                depot.lifetimes.close_session(session, SessionEnd.INSTANCE_DETACHED)
                yield
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


def _publish_attached(depot: Depot, attachment: Attachment, prefill_tokens_per_second: float | None) -> None:
    depot.bus.publish(
        InstanceAttached(
            instance_id=attachment.instance_id,
            model_name=attachment.model_name,
            world_size=attachment.world_size,
            rank=attachment.rank,
            chunk_size=attachment.chunk_size,
            chunk_bytes=attachment.chunk_bytes,
            mapped_bytes=attachment.buffer.mapped_bytes if attachment.buffer is not None else 0,
            transfer_backend=attachment.transfer_backend,
            prefill_tokens_per_second=prefill_tokens_per_second,
            model_revision=attachment.model_revision,
            block_hash_seed=attachment.block_hash_seed,
        )
    )


def _reason(attachment: Attachment, draining: bool, *, has_work: bool) -> str:
    """Return why the attachment ended. A client that ended its stream and left work counts as lost."""
    if attachment.failed.is_set():
        return DetachReason.FAILED
    if draining:
        return DetachReason.DRAINED
    if attachment.closing.is_set():
        return DetachReason.CLOSED
    return DetachReason.LOST if has_work or attachment.transfers else DetachReason.CLOSED

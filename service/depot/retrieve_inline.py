"""Inline retrieve: leased chunks from L1 out on the call itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service.depot.arrivals import Arrivals
from service.depot.depot import Depot
from service.depot.instances import Attachment
from service.depot.leases import Lease
from service.depot.open_retrieve import open_retrieve, tokens_from_l2
from service.depot.running_transfer import to_the_end
from service.depot.values import RetrieveAnswer, RetrieveInlineRequest
from service.depot.verification import check_none_corrupt
from service.errors import BlockAbsent, ChunkLost, Detached, invalid
from service.l1.chunk import Chunk
from telemetry.kinds import Hop

MAX_PIECE_BYTES = 1 << 20


async def retrieve_inline(
    depot: Depot, request: RetrieveInlineRequest, send: Callable[[memoryview, int, int], Awaitable[None]]
) -> RetrieveAnswer:
    """Send leased chunks in pieces, by `send(data, chunk_index, offset_bytes)`. Each is compared before it is sent.

    Nothing is sent of a corrupt chunk, nor of those behind it. They are compared nevertheless, so that the error names
    all corrupt ones. Chunks that are on their way from tiers are waited for.

    `chunk_index` counts chunks from token 0. `offset_bytes` is where the piece begins in its chunk. `data` is L1's own
    memory: it may change after `send` returns.

    Raises: ChunkCorrupt, ChunkLost, InvalidRequest, InstanceNotFound, RankNotFound, StreamStalled, Detached,
        LeaseNotFound, LeaseExpired, LeaseReleased, LeaseRevoked, SessionNotFound, BlockAbsent, TooManyBytes.
    """
    attachment = depot.instances.require(request.instance_id).require_rank(request.rank)
    lease = depot.lifetimes.require_lease(request.lease_id, request.instance_id, request.session_id)
    chunk_size, chunk_bytes = attachment.chunk_size, attachment.chunk_bytes
    if request.skip_tokens % chunk_size:
        raise invalid("skip_tokens", f"not a multiple of the chunk_size {chunk_size}")
    if request.skip_tokens > lease.num_chunks * chunk_size:
        raise invalid("skip_tokens", f"beyond the {lease.num_chunks * chunk_size} leased tokens")
    first = request.skip_tokens // chunk_size
    chunks = lease.chunks_by_rank[request.rank][first:]
    for position, chunk in enumerate(chunks, start=first):
        if chunk.absent_tokens:
            raise _lacks_blocks(position * chunk_size)

    with (
        depot.quota.in_flight(len(chunks) * chunk_bytes),
        open_retrieve(depot, lease, request, chunks, inline=True) as (_, operation),
    ):
        has_corrupt = False
        arrivals = Arrivals(chunks, first, chunk_size, depot.limits.max_wait_seconds)
        chunk_index = first
        while arrived := await arrivals.next(1):
            chunk = arrived[0]
            _check_goes_on(attachment, lease)
            if chunk.absent_tokens:
                raise _lacks_blocks(chunk_index * chunk_size)
            has_corrupt |= not await _is_intact(depot, chunk, chunk_bytes)
            for offset_bytes in range(0, 0 if has_corrupt else chunk_bytes, MAX_PIECE_BYTES):
                _check_goes_on(attachment, lease)
                start = chunk.slot.offset_bytes + offset_bytes
                data = depot.l1[start : start + min(MAX_PIECE_BYTES, chunk_bytes - offset_bytes)]
                await depot.bounded(send(data, chunk_index, offset_bytes), "no piece was taken")
            if not has_corrupt:
                operation.num_tokens += chunk_size
                operation.num_bytes += chunk_bytes
            chunk_index += 1
        operation.l2_tokens = tokens_from_l2(
            lease, first * chunk_size, first * chunk_size + operation.num_tokens, chunk_size
        )
        check_none_corrupt(chunks, first, chunk_size)
        if arrivals.miss is not None:
            raise ChunkLost(arrivals.miss.at_token, arrivals.miss.detail)
    return RetrieveAnswer(
        retrieved_tokens=operation.num_tokens,
        retrieved_bytes=operation.num_bytes,
        valid_tokens=request.skip_tokens + operation.num_tokens,
        l2_tokens=operation.l2_tokens,
    )


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


def _lacks_blocks(token: int) -> BlockAbsent:
    return BlockAbsent(f"of the chunk at token {token} some blocks were not stored")

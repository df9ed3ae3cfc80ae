"""An open retrieve: an operation of its session that has its chunks pinned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service.depot.chunk_index import unpinning
from service.depot.depot import Depot
from service.depot.leases import Lease
from service.depot.operation import Operation
from service.depot.sessions import Session
from service.depot.trace_context import traceparent
from service.depot.values import RetrieveInlineRequest, RetrieveRequest
from service.l1.chunk import Chunk
from telemetry.events import RetrieveFinished, RetrieveStarted
from telemetry.kinds import OperationKind, Outcome, Tier

MAX_TAIL_CHUNKS = 4_096  # whose stores an event names
MAX_STORED_BY = 8  # stores that an event names


@contextmanager
def open_retrieve(
    depot: Depot,
    lease: Lease,
    request: RetrieveRequest | RetrieveInlineRequest,
    chunks: Sequence[Chunk],
    *,
    inline: bool,
) -> Iterator[tuple[Session, Operation]]:
    """Run a retrieve as an operation of its session, with pins on its chunks: the lease may expire meanwhile."""
    session = depot.sessions.require(request.instance_id, request.session_id)
    session.request_of_transfer(depot.index.new_request)
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
            num_tokens=sum(chunk.namespace_stats.chunk_size for chunk in chunks),
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
            l1_tokens=operation.num_tokens - operation.l2_tokens,
            l2_tokens=operation.l2_tokens,
        ),
    ) as operation:
        depot.index.pin(chunks)
        try:
            yield session, operation
        finally:
            depot.slices.run(unpinning(depot.index, [chunks]))
        operation.tier = Tier.L2 if operation.l2_tokens else Tier.L1
        operation.outcome = Outcome.PARTIAL if operation.miss_reason is not None else Outcome.OK


def _stored_by(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """Return the ids of the stores that made the tail of a prefix."""
    tail = chunks[-MAX_TAIL_CHUNKS:]
    return tuple(dict.fromkeys(chunk.stored_by for chunk in reversed(tail)))[:MAX_STORED_BY]


def tokens_from_l2(lease: Lease, first_token: int, end_token: int, chunk_size: int) -> int:
    """Return how many of the tokens from `first_token` to `end_token` were on their way from tiers at the lookup."""
    return sum(
        max(0, min((position + 1) * chunk_size, end_token) - max(position * chunk_size, first_token))
        for position in lease.from_l2
    )

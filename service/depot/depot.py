"""The depot of one tenant: the state that its operations share."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from service.access.credentials import WITHOUT_LIMIT
from service.access.quota import Quota
from service.depot.hits import HitTotals
from service.depot.instances import Attachment, Instance, Instances, TransferBackend
from service.depot.leases import Leases
from service.depot.lifetimes import Lifetimes
from service.depot.naming import ChunkNamer
from service.depot.operation import Operation
from service.depot.pin_bounds import PinBounds
from service.depot.pins import Pins
from service.depot.prefetches import Prefetches
from service.depot.publisher import NullPublisher
from service.depot.recording import RequestRecorder
from service.depot.sessions import Session, Sessions
from service.depot.slices import Slices
from service.depot.store_plan import StoreContext
from service.depot.stored_identities import StoredIdentities
from service.depot.tiers import Tiers
from service.depot.verification import Verification
from service.errors import BlockHashSeedMissing, StreamStalled, invalid
from service.l1.chunk import Chunk, NamespaceStats
from service.l1.index import Index
from service.l1.keys import Prefix
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from service.l1.verify import Verify
from service.tiers.write_policy import WritePolicy
from telemetry.events import ChunksEvicted, ChunksRemoved, Event, Publisher
from telemetry.kinds import OperationKind, Outcome, Tier

T = TypeVar("T")

MAX_CHUNKS_OF_PROMPT = 1 << 18  # the keys of a prompt are in memory while it is stored


@dataclass(frozen=True, slots=True, kw_only=True)
class DepotLimits:
    """How large chunks are, how long things live, and what is verified.

    `chunk_size` is that of engines whose blocks divide it, and that ask for no other: see `chunk_size_for`.
    `max_wait_seconds` bounds each wait for another call. `cache_epoch` is an operator's number: chunks of another epoch
    are never found. `chunks_outlive_depot` says that the process after this one may find the chunks of this one. At 0
    bytes a second there is no scrub. `max_pinned_bytes` is what the pins of the default tenant may hold of L1; others'
    bounds are in their quotas.
    """

    chunk_size: int = 256
    lease_ttl_seconds: float = 60.0
    session_idle_timeout_seconds: float = 600.0
    max_wait_seconds: float = 30.0
    cache_epoch: int = 0
    chunks_outlive_depot: bool = False
    verify: Verify = Verify.ALL
    scrub_bytes_per_second: float = 0.0
    pin_ttl_max_seconds: float = 86_400.0
    max_pinned_bytes: int = 1 << 62


class Depot:
    """The instances, sessions and leases of one tenant, over the L1 and index of all. Only the event loop uses it.

    Every method is one step, without an `await` between reading state and writing it, unless it is `async`: those
    change the state first and wait after. Work on very many chunks, leases or sessions goes on in `slices`.
    """

    def __init__(
        self,
        l1: memoryview,
        backend: TransferBackend,
        limits: DepotLimits,
        bus: Publisher | None,
        *,
        index: Index | None = None,
        quota: Quota | None = None,
        slices: Slices | None = None,
        verification: Verification | None = None,
        tiers: Tiers | None = None,
        recorder: RequestRecorder | None = None,
        namer: ChunkNamer | None = None,
        pin_bounds: PinBounds | None = None,
    ) -> None:
        self.l1 = l1
        self.backend = backend
        self.limits = limits
        self.bus = bus or NullPublisher()
        self.index = index if index is not None else Index(Pool(len(l1)))
        self.verification = verification or Verification(limits.verify, self.index, bus)
        behind = tiers or Tiers((), WritePolicy.NONE, self.index, self.verification)
        self.tiers = behind.tiers
        self.loading = behind.loading
        self.write_behind = behind.write_behind
        self.quota = quota or Quota("", WITHOUT_LIMIT)
        self.tenant = self.quota.tenant
        self.slices = slices or Slices()
        self.leases = Leases(self.index, limits.lease_ttl_seconds, self.slices)
        self.sessions = Sessions(limits.session_idle_timeout_seconds)
        self.instances = Instances()
        self.recorder = recorder
        self.namer = namer if namer is not None and namer.tells(self.tenant) else None
        self.lifetimes = Lifetimes(self.leases, self.sessions, self.slices, self.bus, recorder)
        bounds = pin_bounds or PinBounds(self.index.capacity_bytes, self.index.shares)
        self.pins = Pins(self.index, self.slices, self.bus, bounds, self.tenant, self._max_pinned_bytes)
        self.prefetches = Prefetches(self.index, self.slices, self.bus)
        self.stored_identities = StoredIdentities(
            stats for stats in self.index.namespaces() if stats.tenant == self.tenant
        )
        self.open_stores: set[StoreContext] = set()
        self.num_refused_chunks = 0
        self.hit_totals = HitTotals()
        self.draining = False
        self.is_removed = False  # its tenant: then stores of calls that run on make nothing visible
        self._operation_numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"<Depot {self.index!r}, {len(self.leases)} leases, {len(self.sessions)} sessions>"

    def check_prefix(self, instance: Instance | Attachment, prefix: Prefix, path: str = "") -> None:
        """Check that the prefix's block hashes fit the instance's chunks, and are good for the keys of chunks.

        So no chunk gets a key that another process could not compute, or could compute for other tokens.

        Raises: InvalidRequest, BlockHashSeedMissing.
        """
        num_chunks = prefix.num_tokens // instance.chunk_size
        if num_chunks > MAX_CHUNKS_OF_PROMPT:
            raise invalid(
                f"{path}prefix",
                f"has {num_chunks} chunks of {instance.chunk_size} tokens, more than {MAX_CHUNKS_OF_PROMPT}",
            )
        if not prefix.hash_block_size:
            return
        if instance.chunk_size % prefix.hash_block_size:
            raise invalid(
                f"{path}prefix.hash_block_size",
                f"the instance's chunk_size {instance.chunk_size} is not a multiple of {prefix.hash_block_size}",
            )
        if self.limits.chunks_outlive_depot and not instance.block_hash_seed:
            raise BlockHashSeedMissing(instance.instance_id)

    def stop(self) -> None:
        """Stop the timers for good."""
        self.lifetimes.stop()
        self.pins.stop()

    def namespace_stats(self, attachment: Attachment, prefix: Prefix) -> NamespaceStats:
        """Return the stats of the namespace of a rank's chunks of a prefix."""
        stats = self.index.namespace_stats(
            attachment.identity.namespace(prefix),
            model_name=attachment.model_name,
            cache_salt=prefix.cache_salt,
            rank=attachment.rank,
            tenant=self.tenant,
            adapter=prefix.adapter,
            world_size=attachment.world_size,
            geometry=attachment.identity.geometry,
            hash_block_size=prefix.hash_block_size,
            chunk_size=attachment.chunk_size,
            chunk_bytes=attachment.chunk_bytes,
            model_revision=attachment.model_revision,
            block_hash_seed=attachment.block_hash_seed if prefix.hash_block_size else "",
        )
        if attachment.prefill_tokens_per_second is not None:
            stats.prefill_tokens_per_second = attachment.prefill_tokens_per_second
        return stats

    @contextmanager
    def operation(
        self,
        session: Session,
        kind: OperationKind,
        rank: int,
        *,
        started: Callable[[Operation], Event],
        finished: Callable[[Operation], Event],
    ) -> Iterator[Operation]:
        """Run an operation of a session, and publish its start and its end. The block sets the outcome and the counts.

        `started` and `finished` make the two events.
        """
        operation = Operation(kind=kind, operation_id=self.new_operation_id(), rank=rank)
        session.begin(operation)
        self.sessions.used(session)
        self.bus.publish(started(operation))
        try:
            yield operation
        except asyncio.CancelledError:
            operation.outcome = Outcome.CANCELLED
            raise
        except BaseException:
            operation.outcome = Outcome.FAILED
            raise
        finally:
            operation.duration_seconds = time.monotonic() - operation.start
            session.finish(operation)
            self.sessions.used(session)
            self.bus.publish(finished(operation))

    def new_operation_id(self) -> str:
        """Return an id that is unique in the life of this process."""
        number = next(self._operation_numbers)
        return f"{self.tenant}/{number:x}" if self.tenant else f"{number:x}"

    async def bounded(self, step: Awaitable[T], what: str) -> T:
        """Wait for a client's next step in a stream, `max_wait_seconds` at most.

        Raises: StreamStalled.
        """
        try:
            async with asyncio.timeout(self.limits.max_wait_seconds):
                return await step
        except TimeoutError as error:
            raise StreamStalled(f"{what} for {self.limits.max_wait_seconds:g} seconds") from error

    def _max_pinned_bytes(self) -> int:
        return self.quota.limits.max_pinned_bytes if self.tenant else self.limits.max_pinned_bytes

    def publish_evicted(self, chunks: Sequence[Chunk]) -> None:
        """Publish the chunks that were evicted, an event for each tenant and model."""
        if not chunks:
            return
        now = time.monotonic()
        evicted: dict[tuple[str, str], list[Chunk]] = {}
        for chunk in chunks:
            stats = chunk.namespace_stats
            evicted.setdefault((stats.tenant, stats.model_name), []).append(chunk)
        for (tenant, model_name), of_model in evicted.items():
            self.bus.publish(
                ChunksEvicted(
                    tenant=tenant,
                    model_name=model_name,
                    tier=Tier.L1,
                    keys=tuple(chunk.key for chunk in of_model),
                    num_bytes=sum(chunk.slot.size_bytes for chunk in of_model),
                    lifetime_seconds=now - np.array([chunk.store_time for chunk in of_model]),
                    idle_seconds=now - np.array([chunk.release_time for chunk in of_model]),
                )
            )

    def publish_removed(self, chunks: Iterable[Chunk], reason: RemovalReason) -> None:
        """Publish the chunks of this tenant that left L1 for another reason than space, an event for each model."""
        keys_by_model: dict[str, list[bytes]] = {}
        for chunk in chunks:
            keys_by_model.setdefault(chunk.namespace_stats.model_name, []).append(chunk.key)
        for model_name, keys in keys_by_model.items():
            self.bus.publish(ChunksRemoved(model_name=model_name, tier=Tier.L1, reason=reason, keys=tuple(keys)))

"""The publisher of KV events that the settings ask for."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.depot.tier import Tier
from service.kv_events.naming import Namer
from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from service.load_settings import BadSettings
from service.setting_types import KvEventsFormat, KvEventsHashes
from service.settings import Settings
from telemetry.bus import EventBus
from telemetry.kv_events.batches import Batches
from telemetry.kv_events.named_chunk import PENDING, Medium
from telemetry.kv_events.names import Names
from telemetry.kv_events.publisher import KvEventPublisher
from telemetry.kv_events.ring import Ring
from telemetry.kv_events.topics import Topics

try:
    from telemetry.kv_events.sockets import CannotPublish, Sockets
    from telemetry.kv_events.wire import Wire
except ImportError as error:
    MISSING_PACKAGE: str | None = error.name
else:
    MISSING_PACKAGE = None

logger = logging.getLogger(__name__)

MAX_WAITING_BATCHES = 10_000
"""Of one reader. It loses what comes when it has more."""
INSTALL = "install kvdepot[kv-events]"


class L1Chunks(Protocol):
    """What is needed of L1's index."""

    def get(self, key: ChunkKey, /) -> Chunk | None:
        """Return the chunk of a key, resident or being written."""


@dataclass(slots=True, eq=False)
class KvEvents:
    """KV events while the depot runs."""

    publisher: KvEventPublisher
    namer: Namer
    names: Names
    sockets: Sockets
    ring: Ring
    _run: asyncio.Task[None] | None = None

    def start(self, tasks: asyncio.TaskGroup, bus: EventBus) -> None:
        """Begin to publish. The task ends with `close`."""
        bus.subscribe(self.publisher)
        self.sockets.start(lambda: self.publisher.tell_again("reader"))
        self._run = tasks.create_task(self.publisher.run(), name="kv events")

    async def close(self) -> None:
        """Let readers forget the blocks of this depot, and end."""
        if self._run is not None:
            self._run.cancel()
        self.publisher.say_goodbye()
        await self.sockets.close()


def check_kv_events(settings: Settings) -> None:
    """Check that the packages are there: a takeover must not end in a depot without them.

    Raises: BadSettings.
    """
    if settings.kv_events and MISSING_PACKAGE is not None:
        raise BadSettings(f"kv_events: there is no module {MISSING_PACKAGE}: {INSTALL}")


def open_kv_events(settings: Settings, l1: L1Chunks, tiers: Sequence[Tier]) -> KvEvents | None:
    """Bind the addresses. None: no KV events are published.

    Raises: BadSettings.
    """
    if not settings.kv_events:
        return None
    check_kv_events(settings)
    ring = Ring(settings.kv_events_replay_size)
    try:
        sockets = Sockets(settings.kv_events, settings.kv_events_replay, ring, max_waiting_batches=MAX_WAITING_BATCHES)
    except CannotPublish as error:
        raise BadSettings(f"kv_events: {error}") from error
    as_ints = settings.kv_events_hashes is KvEventsHashes.INT
    names = Names(settings.kv_events_memory)
    topics = Topics(
        settings.kv_events_topic, settings.kv_events_pod or socket.gethostname(), settings.kv_events_tenants
    )
    wire = Wire(as_maps=settings.kv_events_format is KvEventsFormat.MAP)
    publisher = KvEventPublisher(
        names,
        _media_of(l1, tiers),
        Batches(wire, sockets),
        shared_tiers=frozenset(tier.name for tier in tiers if not tier.is_local),
    )
    logger.info("publishes KV events on %s", sockets.address)
    namer = Namer(names, topics, as_ints=as_ints, is_shared=_is_shared(l1, tiers))
    return KvEvents(publisher, namer, names, sockets, ring)


def _is_shared(l1: L1Chunks, tiers: Sequence[Tier]) -> Callable[[ChunkKey], bool]:
    """Return what says whether the chunk of a key is in L1, and in a shared tier as well."""
    get = l1.get
    shared = sum(tier.bit for tier in tiers if not tier.is_local)

    def is_shared(key: ChunkKey) -> bool:
        chunk = get(key)
        return chunk is not None and bool(chunk.in_tiers & shared)

    return is_shared


def _media_of(l1: L1Chunks, tiers: Sequence[Tier]) -> Callable[[bytes], int]:
    """Return what says where the chunk of a key is, in L1 and in local tiers: see `MediaOf`."""
    get = l1.get
    holds = [tier.holds for tier in tiers if tier.is_local]

    def of(key: bytes) -> int:
        chunk = get(ChunkKey(key))
        where = 0
        if chunk is not None:
            where = int(Medium.L1) if chunk.pending_write is None else PENDING
        for each in holds:
            if each(ChunkKey(key)):
                where |= Medium.DISK
        return where

    return of

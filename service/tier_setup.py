"""The tiers that the settings name."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from kernels.host.streaming_copy import built_library
from service.cache_memory import CacheMemory
from service.depot.publisher import NullPublisher
from service.depot.slices import Slices
from service.depot.tier import Tier
from service.depot.verification import Verification
from service.l1.chunk import Chunk
from service.l1.format import Layout
from service.settings import Settings
from service.tiers import tier as tiers
from service.tiers.disk.disk_index import DiskIndex
from service.tiers.disk.disk_layout import DiskLayout
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import STORES
from telemetry.events import Publisher
from telemetry.kinds import Hop

logger = logging.getLogger(__name__)

OpenTiers = Callable[[Settings, CacheMemory, Verification, Publisher | None, Slices], Sequence[Tier]]


def open_tiers(
    settings: Settings, memory: CacheMemory, verification: Verification, bus: Publisher | None, slices: Slices
) -> Sequence[Tier]:
    """Return the tiers behind L1, in the order of the settings. None of them is open before it runs."""

    def drop(chunk: Chunk) -> None:
        verification.drop([chunk], Hop.TIER_WRITE)

    addresses = settings.tier_addresses()
    library = _library() if addresses else None
    opened = []
    for number, address in enumerate(addresses):
        kind = STORES[address.kind]
        launch = Launch(
            address=address,
            kind=kind,
            l1_fd=memory.fd,
            layout=Layout(settings.l1_size),
            environment=os.environ,  # each I/O worker gets the part of it that its kind may have
            library=library,
        )
        index = DiskIndex(DiskLayout.of(address)) if kind.capabilities.is_local else None
        opened.append(
            tiers.Tier(
                launch,
                1 << number,
                l1=memory.index,
                index=index,
                bus=bus or NullPublisher(),
                run_steps=slices.run,
                on_corrupt=drop,
            )
        )
    return opened


def _library() -> Path | None:
    """Return the compiled library that I/O workers compute checksums with. None: they use NumPy."""
    try:
        return built_library()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("I/O workers compute checksums slowly, without a compiler: %s", error)
        return None

"""The tiers that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.cache_memory import CacheMemory
from service.depot.tier import Tier
from service.depot.verification import Verification
from service.settings import Settings
from telemetry.events import Publisher

OpenTiers = Callable[[Settings, CacheMemory, Verification, Publisher | None], Sequence[Tier]]


def open_tiers(
    settings: Settings, memory: CacheMemory, verification: Verification, bus: Publisher | None
) -> Sequence[Tier]:
    """Return the tiers behind L1, in the order of the settings. None of them is open before it runs."""
    return ()

"""A tier behind L1: what lookups, loads and writes see of it, and its life."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.l1.chunk import Chunk
from service.l1.format import Layout
from service.l1.keys import ChunkKey
from service.tiers.accounts import Accounts
from service.tiers.address import TierAddress
from service.tiers.answer import Answer, Doubt
from service.tiers.asking import Asking
from service.tiers.breaker import Breaker
from service.tiers.crew import Crew
from service.tiers.erasing import Erasing
from service.tiers.forgotten import Cleared
from service.tiers.io_worker.process import Launch
from service.tiers.kinds import STORES, StoreKind
from service.tiers.limits import TierLimits
from service.tiers.load import Load, LoadEnd
from service.tiers.local_index import LocalIndex
from service.tiers.opening import Opening
from service.tiers.placing import Placing
from service.tiers.reading import Reading
from service.tiers.record import Owner, OwnerTag, name_tag
from service.tiers.snapshot import TierSnapshot, TierState
from service.tiers.store import Role
from service.tiers.write_budget import WriteBudget
from service.tiers.write_queue import WriteQueue
from service.tiers.writing import L1Chunks, Writing
from telemetry.events import Publisher

logger = logging.getLogger(__name__)

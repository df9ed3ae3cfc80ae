"""An engine's paged buffer on a device, with the streams and threads that move its blocks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.batch import Direction, Moves
from kernels.cuda.l1 import PinnedL1
from kernels.cuda.phase_clock import PhaseClock
from kernels.cuda.resources import Resources
from kernels.cuda.settings import CudaSettings
from kernels.cuda.staging_ring import StagingRing
from kernels.cuda.steps import chunk_bytes
from kernels.cuda.stream_worker import StreamWorker
from kernels.cuda.tables import PlaneTables, Table, write_planes
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import RegionUnavailable, TransferCancelled, TransferFailed
from kernels.plan import GroupPlan

logger = logging.getLogger(__name__)

NUM_TABLES = 8
TABLE_BLOCKS = 1 << 16
TABLE_MOVES = 256


class Worker(Protocol):
    """What runs a lane."""

    def join(self) -> None:
        """Wait until the lane is over."""


Spawn = Callable[[StreamWorker, str], Worker]
"""Makes a worker of that name take the lane's turns until it is over."""


def spawn_thread(lane: StreamWorker, name: str) -> threading.Thread:
    """A thread of its own for each lane."""
    thread = threading.Thread(target=lane.run, name=name, daemon=True)
    thread.start()
    return thread


class CudaBuffer:
    """Blocks at ``plane_addresses``, for each group in the order of its ``chunk_offsets``; valid until `close`.

    ``objects`` are the allocations that it lies in. What is made of the device goes to ``resources``, which belong to
    the buffer from then on.
    """

    transfer_backend = "cuda"

    def __init__(
        self,
        resources: Resources,
        plans: Sequence[GroupPlan],
        plane_addresses: Sequence[NDArray[np.uint64]],
        l1: PinnedL1,
        settings: CudaSettings,
        spawn: Spawn,
        *,
        mapped_bytes: int,
        objects: frozenset[Hashable] = frozenset(),
    ) -> None:
        self.objects = objects
        self.plans = tuple(plans)
        self.chunk_bytes = chunk_bytes(plans)
        self.mapped_bytes = mapped_bytes
        self._resources = resources
        self._failure: TransferFailed | None = None

        table = Table(resources, 2 * sum(addresses.size for addresses in plane_addresses))
        planes = write_planes(table, plans, plane_addresses)
        stream = resources.stream()
        table.upload(stream)
        resources.device.drain(stream)

        self._lanes: dict[Direction, StreamWorker] = {}
        for direction in Direction:
            lane = self._lanes[direction] = self._new_lane(planes, l1, direction, settings)
            worker = spawn(lane, f"kvdepot-{direction}")
            resources.on_close(worker.join)
            resources.on_close(self._stop, TransferCancelled("the attachment has ended"))

    def __repr__(self) -> str:
        return f"<CudaBuffer {self.mapped_bytes} bytes, {self.transfer_backend}>"

    def check_size(self) -> None:
        """Raises RegionUnavailable if the attachment has failed; device memory does not change its size."""
        if self._failure is not None:
            raise RegionUnavailable(f"the attachment has failed: {self._failure}")

    def start(self, direction: Direction, moves: Moves, ready_event: bytes) -> CudaTransfer:
        """Begins to carry out moves that were checked."""
        return self._lanes[direction].start(moves, ready_event)

    def close(self) -> None:
        """Stops what runs, waits for the streams, and gives the memory back."""
        self._resources.close()
        self.mapped_bytes = 0

    def _new_lane(
        self,
        planes: Sequence[PlaneTables],
        l1: PinnedL1,
        direction: Direction,
        settings: CudaSettings,
    ) -> StreamWorker:
        resources = self._resources
        ring = StagingRing(resources, direction, planes, l1, settings)
        blocks_per_chunk = sum(plan.blocks_per_chunk for plan in self.plans)
        moves_per_table = max(1, min(TABLE_MOVES, TABLE_BLOCKS // blocks_per_chunk))
        num_words = 2 * moves_per_table * blocks_per_chunk
        return StreamWorker(
            resources.device,
            ring,
            PhaseClock(resources.device, ring, resources.event()),
            tables=[Table(resources, num_words) for _ in range(NUM_TABLES)],
            moves_per_table=moves_per_table,
            step_events=[
                tuple((resources.event(), resources.event()) for _ in ring.works) for _ in range(settings.steps_ahead)
            ],
            on_failure=self._fail,
        )

    def _fail(self, failure: TransferFailed) -> None:
        if self._failure is None:
            self._failure = failure
            logger.error("an attachment has failed: %s", failure, exc_info=failure.__cause__)
        self._stop(failure)

    def _stop(self, error: Exception) -> None:
        """Stops all lanes, before any is waited for."""
        for lane in list(self._lanes.values()):
            lane.stop(error)

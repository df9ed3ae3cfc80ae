"""An engine's paged buffer on a device, with the streams and threads that copy its blocks."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.copies import ChunkCopy, checked_copies
from kernels.cuda.chunk_sums import ChecksumPart, ChunkSums, HostShare
from kernels.cuda.phase_clock import PhaseClock
from kernels.cuda.pinned_l1 import PinnedL1
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import HANDLE_BYTES
from kernels.cuda.settings import CudaSettings
from kernels.cuda.staging_ring import StagingRing
from kernels.cuda.steps import chunk_bytes
from kernels.cuda.stream_worker import StreamWorker
from kernels.cuda.transfer import CudaTransfer
from kernels.cuda.uploads import PlaneArrays, UploadBuffer, upload_planes
from kernels.errors import DeviceFailed, RegionError, TransferCancelled
from kernels.plan import GroupPlan
from kernels.transfer import Direction

logger = logging.getLogger(__name__)

NUM_UPLOAD_BUFFERS = 8
MAX_UPLOAD_BLOCKS = 1 << 16
MAX_UPLOAD_COPIES = 256


class Thread(Protocol):
    """The thread that runs a worker."""

    def join(self) -> None:
        """Wait until the worker is over."""


Spawn = Callable[[StreamWorker, str], Thread]
"""Runs a worker in a thread of that name."""


def spawn_thread(worker: StreamWorker, name: str) -> threading.Thread:
    """Run a worker in a daemon thread of its own."""
    thread = threading.Thread(target=worker.run, name=name, daemon=True)
    thread.start()
    return thread


class CudaBuffer:
    """An engine's paged buffer on a device, mapped. It is valid until `close`.

    `plane_addresses` has an array for each group, in the order of its `chunk_offsets`. `objects` are the
    allocations that hold the blocks. The buffer owns `resources`.
    """

    transfer_backend = "cuda"
    can_wait_for_events = True

    def __init__(
        self,
        resources: Resources,
        plans: Sequence[GroupPlan],
        plane_addresses: Sequence[NDArray[np.uint64]],
        l1: PinnedL1,
        settings: CudaSettings,
        spawn: Spawn,
        checksum_part: ChecksumPart,
        *,
        mapped_bytes: int,
        objects: frozenset[Hashable] = frozenset(),
    ) -> None:
        self.objects = objects
        self.plans = tuple(plans)
        self.chunk_bytes = chunk_bytes(plans)
        self.mapped_bytes = mapped_bytes
        self._l1 = l1
        self._resources = resources
        self._checksum_part = checksum_part
        self._failure: DeviceFailed | None = None
        planes = upload_planes(resources, plans, plane_addresses)
        self._workers: dict[Direction, StreamWorker] = {}
        for direction in Direction:
            worker = self._workers[direction] = self._new_worker(planes, direction, settings)
            resources.on_close(spawn(worker, f"kvdepot-{direction}").join)
            resources.on_close(self._stop, TransferCancelled("the attachment has ended"))

    def __repr__(self) -> str:
        return f"<CudaBuffer {self.mapped_bytes} bytes, {self.transfer_backend}>"

    def check_size(self) -> None:
        """Check that the attachment has not failed. Device memory does not change its size.

        Raises: RegionError.
        """
        if self._failure is not None:
            raise RegionError(f"the attachment has failed: {self._failure}")

    def store(self, copies: Sequence[ChunkCopy], ready_event: bytes = b"") -> CudaTransfer:
        """Start to copy blocks into chunks, once the engine's event has happened.

        Each copy must fit the buffer and the arena; otherwise nothing is written.

        Raises: ValueError.
        """
        return self._start(Direction.STORE, copies, ready_event)

    def retrieve(self, copies: Sequence[ChunkCopy], ready_event: bytes = b"") -> CudaTransfer:
        """Start to copy chunks into blocks, once the engine's event has happened.

        Each copy must fit the buffer and the arena; otherwise nothing is written.

        Raises: ValueError.
        """
        return self._start(Direction.RETRIEVE, copies, ready_event)

    def close(self) -> None:
        """Stop what runs, wait for the streams, and give the memory back."""
        self._resources.close()
        self.mapped_bytes = 0

    def _start(self, direction: Direction, copies: Sequence[ChunkCopy], ready_event: bytes) -> CudaTransfer:
        if len(ready_event) not in (0, HANDLE_BYTES):
            raise ValueError(f"a ready_event has {HANDLE_BYTES} bytes")
        checked = checked_copies(self.plans, self.chunk_bytes, self._l1.size_bytes, copies)
        return self._workers[direction].start(checked, ready_event)

    def _new_worker(self, planes: Sequence[PlaneArrays], direction: Direction, settings: CudaSettings) -> StreamWorker:
        resources = self._resources
        ring = StagingRing(resources, direction, planes, self._l1, settings)
        blocks_per_chunk = sum(plan.blocks_per_chunk for plan in self.plans)
        copies_per_upload = max(1, min(MAX_UPLOAD_COPIES, MAX_UPLOAD_BLOCKS // blocks_per_chunk))
        num_words = copies_per_upload * (2 * blocks_per_chunk + 1)  # ids and places of blocks, and the copies' sums
        return StreamWorker(
            resources.device,
            ring,
            PhaseClock(resources.device, ring, resources.event()),
            upload_buffers=[UploadBuffer(resources, num_words) for _ in range(NUM_UPLOAD_BUFFERS)],
            copies_per_upload=copies_per_upload,
            step_events=[
                tuple((resources.event(), resources.event()) for _ in ring.phases) for _ in range(settings.steps_ahead)
            ],
            sums_of=functools.partial(ChunkSums, HostShare(self.plans, ring.are_summed), self._checksum_part),
            on_failure=self._fail,
        )

    def _fail(self, failure: DeviceFailed) -> None:
        if self._failure is None:
            self._failure = failure
            logger.error("an attachment has failed: %s", failure, exc_info=failure.__cause__)
        self._stop(failure)

    def _stop(self, error: Exception) -> None:
        """Stop both workers before the buffer waits for one of them."""
        for worker in list(self._workers.values()):
            worker.stop(error)

"""The CUDA backend: blocks on a GPU, mapped over CUDA IPC, and chunks in pinned host memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.block_copy import checked_blocks
from kernels.cuda.batch import Direction, Moves
from kernels.cuda.buffer import CudaBuffer, Spawn, spawn_thread
from kernels.cuda.ipc import ImportedMemory
from kernels.cuda.l1 import PinnedL1
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import HANDLE_BYTES, CudaDevice, CudaError, CudaRuntime, canonical_uuid
from kernels.cuda.settings import CudaSettings
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import BackendUnavailable, GeometryError, RegionUnavailable
from kernels.geometry import CudaIpc, Group, Region
from kernels.plan import check_groups, plan_groups
from kernels.transfer import ChunkCopy

logger = logging.getLogger(__name__)


class CudaBackend:
    """Copies between engines' blocks on GPUs and the L1 arena, on streams of its own.

    ``l1`` is the whole arena, writable. It should be registered as it is populated; what is not, is when it is needed.
    """

    name = "cuda"

    def __init__(
        self,
        l1: memoryview,
        runtime: CudaRuntime,
        settings: CudaSettings | None = None,
        spawn: Spawn = spawn_thread,
    ) -> None:
        if l1.readonly:
            raise ValueError("the L1 arena is not writable")
        self._settings = settings or CudaSettings()
        self._runtime = runtime
        self._spawn = spawn
        self._l1 = PinnedL1(runtime, l1, self._settings.pin_bytes)
        self._imported = ImportedMemory()
        self._buffers: set[CudaBuffer] = set()

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Registers a range of L1 with CUDA, which takes a while: call it in a thread, ahead of need.

        Raises:
            BackendUnavailable: the memory can't be pinned.
        """
        try:
            self._l1.register(offset_bytes, size_bytes)
        except CudaError as error:
            raise BackendUnavailable(f"L1 can't be registered with CUDA: {error}") from error

    def attach(
        self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int, *, allow_process_fd: bool
    ) -> CudaBuffer:
        """Maps an engine's buffer and makes all that its transfers need, which takes a while: call it in a thread.

        ``allow_process_fd`` says nothing about device memory: whether its handles may come this way, the caller knows.

        Raises:
            GeometryError: see `check_groups`; or the regions are not on one device.
            RegionUnavailable: a handle can't be opened, or its allocation is smaller than was said.
            BackendUnavailable: the device is not visible here, or lacks memory or something else.
        """
        check_groups(groups, [region.size_bytes for region in regions], chunk_size)
        plans = plan_groups(groups, chunk_size)
        device = self._device_of(regions)
        resources = Resources(self._runtime, device)
        with contextlib.ExitStack() as undoing:
            undoing.callback(resources.close)
            try:
                device.prepare()
                bases = self._map(resources, regions)
                addresses = [(bases[plan.regions] + plan.engine_offsets.astype(np.uint64)).ravel() for plan in plans]
                mapped_bytes = sum(region.size_bytes for region in regions)
                buffer = CudaBuffer(
                    resources,
                    plans,
                    addresses,
                    self._l1,
                    self._settings,
                    self._spawn,
                    mapped_bytes=mapped_bytes,
                    objects=frozenset(_allocation(region) for region in regions),
                )
            except CudaError as error:
                raise BackendUnavailable(f"the device can't serve the attachment: {error}") from error
            undoing.pop_all()
        self._buffers.add(buffer)
        resources.on_close(self._buffers.discard, buffer)
        return buffer

    def gather(self, buffer: CudaBuffer, moves: Sequence[ChunkCopy], ready_event: bytes = b"") -> CudaTransfer:
        """Starts to copy blocks into chunks, when the engine's event has happened.

        Raises:
            ValueError: a move does not fit the buffer or the arena. Nothing was written.
        """
        return self._start(buffer, Direction.STORE, moves, ready_event)

    def scatter(self, buffer: CudaBuffer, moves: Sequence[ChunkCopy], ready_event: bytes = b"") -> CudaTransfer:
        """Starts to copy chunks into blocks, when the engine's event has happened.

        Raises:
            ValueError: a move does not fit the buffer or the arena. Nothing was written.
        """
        return self._start(buffer, Direction.RETRIEVE, moves, ready_event)

    def close(self) -> None:
        """Ends what is attached, and lets go of the arena."""
        for buffer in list(self._buffers):
            buffer.close()
        try:
            self._l1.close()
        except CudaError as error:
            logger.warning("not all of L1 could be unregistered: %s", error)

    def _start(
        self, buffer: CudaBuffer, direction: Direction, moves: Sequence[ChunkCopy], ready_event: bytes
    ) -> CudaTransfer:
        if len(ready_event) not in (0, HANDLE_BYTES):
            raise ValueError(f"a ready_event has {HANDLE_BYTES} bytes")
        blocks = checked_blocks(buffer.plans, buffer.chunk_bytes, self._l1.size_bytes, moves)
        l1_offsets = np.array([move.l1_offset_bytes for move in moves], dtype=np.int64)
        return buffer.start(direction, Moves(l1_offsets, blocks), ready_event)

    def _device_of(self, regions: Sequence[Region]) -> CudaDevice:
        uuids = []
        for index, region in enumerate(regions):
            if not isinstance(region.handle, CudaIpc):
                raise GeometryError(f"regions[{index}]", "it is not CUDA memory, as another region is")
            uuids.append(canonical_uuid(region.handle.device_uuid))
            if uuids[index] != uuids[0]:
                raise GeometryError(f"regions[{index}].cuda_ipc.device_uuid", "it is not the device of regions[0]")
        if not uuids:
            raise GeometryError("regions", "there are none")
        device = self._runtime.devices.get(uuids[0])
        if device is None:
            visible = ", ".join(self._runtime.devices)
            raise BackendUnavailable(f"no device with the UUID {uuids[0]} is visible to the depot, only {visible}")
        return device

    def _map(self, resources: Resources, regions: Sequence[Region]) -> NDArray[np.uint64]:
        """Where each region begins."""
        addresses = []
        for index, region in enumerate(regions):
            assert isinstance(region.handle, CudaIpc)
            try:
                base = resources.imported(self._imported, region.handle.handle)
                allocated_bytes = resources.device.bytes_from(base)
            except CudaError as error:
                raise RegionUnavailable(f"regions[{index}] can't be mapped: {error}") from error
            if region.handle.offset_bytes + region.size_bytes > allocated_bytes:
                raise RegionUnavailable(f"regions[{index}] reaches beyond its allocation of {allocated_bytes} bytes")
            addresses.append(base + region.handle.offset_bytes)
        return np.array(addresses, dtype=np.uint64)


def _allocation(region: Region) -> bytes:
    """The handle is the allocation's own, whichever part of it a region is."""
    assert isinstance(region.handle, CudaIpc)
    return region.handle.handle

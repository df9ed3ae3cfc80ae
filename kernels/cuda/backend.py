"""The CUDA backend: blocks on a GPU, mapped over CUDA IPC, and chunks in pinned host memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import kvsum64
from kernels.cuda.buffer import CudaBuffer, Spawn, spawn_thread
from kernels.cuda.chunk_sums import ChecksumPart
from kernels.cuda.ipc import ImportedMemory
from kernels.cuda.pinned_l1 import PinnedL1
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import CudaDevice, CudaError, CudaRuntime, canonical_uuid
from kernels.cuda.settings import CudaSettings
from kernels.errors import BackendError, GeometryError, RegionError
from kernels.geometry import CudaIpc, Group, Region
from kernels.plan import check_groups, plan_groups

logger = logging.getLogger(__name__)


class CudaBackend:
    """The backend for buffers on GPUs. Each buffer has streams of its own.

    `l1` is the whole arena, writable. `register` it as it is populated. A transfer registers the rest that it needs.
    `checksum_part` sums bytes of `l1` that no kernel sums; NumPy does if it is None.
    """

    name = "cuda"

    def __init__(
        self,
        l1: memoryview,
        runtime: CudaRuntime,
        settings: CudaSettings | None = None,
        spawn: Spawn = spawn_thread,
        checksum_part: ChecksumPart | None = None,
    ) -> None:
        if l1.readonly:
            raise ValueError("the L1 arena is not writable")
        self._settings = settings or CudaSettings()
        self._runtime = runtime
        self._spawn = spawn
        self._checksum_part = checksum_part or _with_numpy(l1)
        self._l1 = PinnedL1(runtime, l1, self._settings.pin_bytes)
        self._imported = ImportedMemory()
        self._buffers: set[CudaBuffer] = set()

    def register(self, offset_bytes: int, size_bytes: int) -> None:
        """Register a range of L1 with CUDA ahead of need. This takes time: call it in a thread.

        Raises: BackendError.
        """
        try:
            self._l1.register(offset_bytes, size_bytes)
        except CudaError as error:
            raise BackendError(f"L1 can't be registered with CUDA: {error}") from error

    def attach(self, groups: Sequence[Group], regions: Sequence[Region], chunk_size: int) -> CudaBuffer:
        """Map an engine's buffer and make all that its transfers need. This takes time: call it in a thread.

        All regions must be on one device. A RegionError says that a handle can't be opened, or that its allocation is
        too small. A BackendError says that the device is not visible or lacks something.

        Raises: GeometryError, RegionError, BackendError.
        """
        check_groups(groups, [region.size_bytes for region in regions])
        plans = plan_groups(groups, chunk_size)
        handles = _handles(regions)
        device = self._device(handles)
        resources = Resources(self._runtime, device)
        with contextlib.ExitStack() as undoing:
            undoing.callback(resources.close)
            try:
                device.prepare()
                bases = self._map(resources, regions, handles)
                addresses = [(bases[plan.regions] + plan.engine_offsets.astype(np.uint64)).ravel() for plan in plans]
                buffer = CudaBuffer(
                    resources,
                    plans,
                    addresses,
                    self._l1,
                    self._settings,
                    self._spawn,
                    self._checksum_part,
                    mapped_bytes=sum(region.size_bytes for region in regions),
                    objects=frozenset(handle.handle for handle in handles),
                )
            except CudaError as error:
                raise BackendError(f"the device can't serve the attachment: {error}") from error
            undoing.pop_all()
        self._buffers.add(buffer)
        resources.on_close(self._buffers.discard, buffer)
        return buffer

    def close(self) -> None:
        """End all attachments, and release the arena."""
        for buffer in list(self._buffers):
            buffer.close()
        try:
            self._l1.close()
        except CudaError as error:
            logger.warning("not all of L1 could be unregistered: %s", error)

    def _device(self, handles: Sequence[CudaIpc]) -> CudaDevice:
        uuid = canonical_uuid(handles[0].device_uuid)
        device = self._runtime.devices.get(uuid)
        if device is None:
            visible = ", ".join(self._runtime.devices)
            raise BackendError(f"no device with the UUID {uuid} is visible to the depot, only {visible}")
        return device

    def _map(self, resources: Resources, regions: Sequence[Region], handles: Sequence[CudaIpc]) -> NDArray[np.uint64]:
        """Return the address of each region."""
        addresses = []
        for index, (region, handle) in enumerate(zip(regions, handles, strict=True)):
            try:
                base = resources.imported(self._imported, handle.handle)
                allocated_bytes = resources.device.bytes_from(base)
            except CudaError as error:
                raise RegionError(f"regions[{index}] can't be mapped: {error}") from error
            if handle.offset_bytes + region.size_bytes > allocated_bytes:
                raise RegionError(f"regions[{index}] reaches beyond its allocation of {allocated_bytes} bytes")
            addresses.append(base + handle.offset_bytes)
        return np.array(addresses, dtype=np.uint64)


def _with_numpy(l1: memoryview) -> ChecksumPart:
    memory = np.frombuffer(l1, dtype=np.uint8)
    return lambda l1_offset, size_bytes, chunk_offset: kvsum64(memory[l1_offset:][:size_bytes], chunk_offset)


def _handles(regions: Sequence[Region]) -> list[CudaIpc]:
    """Return the handles of regions that all lie on one device."""
    handles: list[CudaIpc] = []
    for index, region in enumerate(regions):
        if not isinstance(region.handle, CudaIpc):
            raise GeometryError(f"regions[{index}]", "it is not CUDA memory, as another region is")
        handles.append(region.handle)
        if canonical_uuid(region.handle.device_uuid) != canonical_uuid(handles[0].device_uuid):
            raise GeometryError(f"regions[{index}].cuda_ipc.device_uuid", "it is not the device of regions[0]")
    if not handles:
        raise GeometryError("regions", "there are none")
    return handles

"""An engine's CUDA memory, as regions to attach, and its CUDA events, as handles that the depot can wait for.

The handles come from the CUDA driver itself, so that no version of torch matters. torch itself is never imported.
"""

from __future__ import annotations

import ctypes
import functools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kvdepot.memory.regions import Mapping, Regions
from kvdepot.v1.cache_pb2 import CudaIpc, MemoryRegion

_LIBRARY = "libcuda.so.1"
_HANDLE_BYTES = 64

# From cuda.h.
_RANGE_START_ADDR = 11
_INVALID_VALUE, _INVALID_HANDLE, _NOT_SUPPORTED = 1, 400, 801


class CudaUnavailable(Exception):
    """There is no CUDA driver, or it refused a call."""


class NotShareable(ValueError):
    """The memory or the event is of a kind that no other process can open."""


class _Refused(CudaUnavailable):
    """The driver refused a call, with this status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Handle(ctypes.Structure):
    """A CUipcMemHandle or a CUipcEventHandle."""

    _fields_ = (("reserved", ctypes.c_ubyte * _HANDLE_BYTES),)


@dataclass(frozen=True, slots=True)
class _Allocation:
    """An allocation, as another process opens it."""

    handle: bytes
    device_uuid: str


class CudaRegions(Regions):
    """The CUDA memory that tensors lie in, as regions to attach.

        shared = CudaRegions()
        group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(kv_caches, shared)
        attachment = client.attach(..., groups=[group], regions=shared.regions)

    A region is the storage of a torch tensor; nothing is copied or moved. Several tensors in one storage are one
    region, and several storages in one allocation share its handle. This object keeps the storages alive. All of them
    must be on one device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._allocations: dict[int, _Allocation] = {}

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and the byte in the region at which its first element is.

        It must be a torch tensor on a CUDA device. Memory of a pool, or of torch's expandable segments, is not
        shareable.

        Raises: ValueError, NotShareable, CudaUnavailable.
        """
        return super().locate(tensor)

    def _address(self, tensor: Any) -> int:
        if not hasattr(tensor, "untyped_storage") or tensor.device.type != "cuda":
            raise ValueError("only a torch tensor on a CUDA device lies in memory that CUDA can share")
        return int(tensor.data_ptr())

    def _share(self, tensor: Any) -> int:
        owner = tensor.untyped_storage()
        start, size_bytes = int(owner.data_ptr()), int(owner.nbytes())
        with _device_in_use(int(tensor.device.index)) as device:
            base = _allocation_start(start)
            if base not in self._allocations:
                self._allocations[base] = _Allocation(_memory_handle(base), _device_uuid(device))
        allocation = self._allocations[base]
        handle = CudaIpc(handle=allocation.handle, offset_bytes=start - base, device_uuid=allocation.device_uuid)
        return self._append(
            MemoryRegion(size_bytes=size_bytes, cuda_ipc=handle), Mapping(start, start + size_bytes, owner)
        )


def ready_event(event: Any) -> bytes:
    """Return the `ready_event` of a store or a retrieve, which the depot waits for before it touches blocks.

    `event` is a `torch.cuda.Event(interprocess=True)`. Record it first, on the stream that works on the blocks.
    Neither record it again nor drop it before the call has returned.

    Raises: NotShareable, CudaUnavailable.
    """
    if not event.cuda_event:
        raise NotShareable("the event was never recorded, so there is nothing to wait for")
    with _device_in_use(int(event.device.index)):
        return _handle(
            "cuIpcGetEventHandle",
            ctypes.c_void_p(event.cuda_event),
            "the event can't be shared; was it made with interprocess=True?",
        )


def _memory_handle(base: int) -> bytes:
    return _handle(
        "cuIpcGetMemHandle",
        ctypes.c_uint64(base),
        "the memory can't be shared: memory of a pool never can, nor can torch's expandable segments "
        "(start the engine with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False)",
    )


def _handle(call: str, what: Any, problem: str) -> bytes:
    handle = _Handle()
    try:
        _call(call, ctypes.byref(handle), what)
    except _Refused as error:
        if error.status in (_INVALID_VALUE, _INVALID_HANDLE, _NOT_SUPPORTED):
            raise NotShareable(f"{problem} [{error}]") from error
        raise
    return bytes(handle)


def _allocation_start(address: int) -> int:
    start = ctypes.c_uint64()
    _call("cuPointerGetAttribute", ctypes.byref(start), ctypes.c_int(_RANGE_START_ADDR), ctypes.c_uint64(address))
    return start.value


def _device_uuid(device: ctypes.c_int) -> str:
    number = (ctypes.c_ubyte * 16)()
    _call("cuDeviceGetUuid_v2", ctypes.byref(number), device)
    return f"GPU-{uuid.UUID(bytes=bytes(number))}"


@contextmanager
def _device_in_use(ordinal: int) -> Iterator[ctypes.c_int]:
    """Make a device current in the calling thread, with the primary context, which torch uses as well."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield device
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(context))
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", device)


def _call(name: str, *arguments: Any) -> None:
    library = _library(_LIBRARY)
    if status := getattr(library, name)(*arguments):
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        raise _Refused(f"{name}: {(text.value or b'CUDA_ERROR_%d' % status).decode()}", status)


@functools.cache
def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise CudaUnavailable(f"there is no CUDA driver: {error}") from error

"""Calls of the CUDA driver that CuPy lacks, makes slowly, or makes with the GIL held while they wait for a GPU.

To open or close memory of another process can wait for all work of the device. ctypes releases the GIL meanwhile.
"""

from __future__ import annotations

import ctypes
import functools
import uuid

from kernels.cuda.kernel import KernelParams
from kernels.cuda.runtime import HANDLE_BYTES, Address, CudaError, Event, Stream

# From cuda.h.
_LAZY_ENABLE_PEER_ACCESS = 1
_RANGE_START_ADDR = 11
_RANGE_SIZE = 12


class _Handle(ctypes.Structure):
    """A CUipcMemHandle or a CUipcEventHandle; both are passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


def device_uuid(ordinal: int) -> str:
    """Return the UUID of a device, or of the MIG slice that the process sees in its place."""
    device, number = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    _call("cuInit", ctypes.c_uint(0))
    _call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    _call("cuDeviceGetUuid_v2", ctypes.byref(number), device)
    return str(uuid.UUID(bytes=bytes(number)))


def open_memory(handle: bytes) -> Address:
    """Map memory of another process into the current context."""
    address = ctypes.c_uint64()
    flags = ctypes.c_uint(_LAZY_ENABLE_PEER_ACCESS)
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle), flags)
    return Address(address.value)


def close_memory(address: Address) -> None:
    """Unmap memory that `open_memory` has mapped."""
    _call("cuIpcCloseMemHandle", ctypes.c_uint64(address))


def bytes_from(address: Address) -> int:
    """Return the number of bytes from an address to the end of its allocation."""
    start, size_bytes = ctypes.c_uint64(), ctypes.c_size_t()
    for value, attribute in ((start, _RANGE_START_ADDR), (size_bytes, _RANGE_SIZE)):
        _call("cuPointerGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_uint64(address))
    return start.value + size_bytes.value - address


def open_event(handle: bytes) -> Event:
    """Open an event of another process."""
    event = ctypes.c_void_p()
    _call("cuIpcOpenEventHandle", ctypes.byref(event), _Handle.from_buffer_copy(handle))
    return Event(event.value or 0)


def destroy_event(event: Event) -> None:
    """Destroy an event."""
    _call("cuEventDestroy_v2", ctypes.c_void_p(event))


def launch(function: int, num_ctas: int, threads_per_cta: int, params: KernelParams, stream: Stream) -> None:
    """Start a kernel that takes one structure by value. The driver copies the structure before this returns."""
    one, nothing = ctypes.c_uint(1), ctypes.c_void_p()
    _call(
        "cuLaunchKernel",
        ctypes.c_void_p(function),
        *(ctypes.c_uint(num_ctas), one, one),
        *(ctypes.c_uint(threads_per_cta), one, one),
        ctypes.c_uint(0),
        ctypes.c_void_p(stream),
        (ctypes.c_void_p * 1)(params.ctypes.data),
        nothing,
    )


def _call(name: str, *arguments: object) -> None:
    status = getattr(_library(), name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorName(status, ctypes.byref(text))
        raise CudaError(f"{name}: {(text.value or b'CUDA_ERROR_%d' % status).decode()}")


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")

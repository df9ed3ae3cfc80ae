"""CUDA's runtime API as CuPy has it: streams, events, memory, copies."""

# ruff: noqa: N816 - the names are CuPy's

import ctypes as _ctypes
import uuid as _uuid
from typing import Any as _Any

from . import driver as _driver

hostAllocPortable, hostAllocMapped = 1, 2
memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
memoryTypeUnregistered, memoryTypeHost, memoryTypeDevice = range(3)
streamDefault, streamNonBlocking = 0, 1
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4
cudaDevAttrMultiProcessorCount, cudaDevAttrCanUseHostPointerForRegisteredMem = 16, 91

_INVALID_VALUE, _INVALID_DIRECTION, _INVALID_DEVICE = 1, 21, 101
_MEMORY_TYPE, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 2, 75, 76
_TYPES_OF_KIND = {  # of the target and of the source; what is pageable is unregistered
    memcpyHostToHost: ({memoryTypeUnregistered, memoryTypeHost}, {memoryTypeUnregistered, memoryTypeHost}),
    memcpyHostToDevice: ({memoryTypeDevice}, {memoryTypeUnregistered, memoryTypeHost}),
    memcpyDeviceToHost: ({memoryTypeUnregistered, memoryTypeHost}, {memoryTypeDevice}),
    memcpyDeviceToDevice: ({memoryTypeDevice}, {memoryTypeDevice}),
}
_u64, _size = _ctypes.c_uint64, _ctypes.c_size_t


class CUDARuntimeError(RuntimeError):
    """The runtime refused a call."""

    def __init__(self, status):
        super().__init__(f"{_driver._name(status)} ({status})")
        self.status = status


class PointerAttributes:
    """The kind of memory at an address."""

    def __init__(self, device, devicePointer, hostPointer, type):  # noqa: A002, N803 - CuPy's names
        self.device, self.devicePointer, self.hostPointer, self.type = device, devicePointer, hostPointer, type


def _check(status):
    if status:
        raise CUDARuntimeError(status)


def _quietly(name, handle):
    """Make a call while an object is deleted; ignore errors."""
    _use_a_device()
    getattr(_driver._library(), name)(_u64(handle))


def _use_a_device():
    """Make device 0 the thread's if it has none, as the runtime does."""
    if _driver._library().cuCtxGetDevice(_ctypes.byref(_ctypes.c_int())):
        setDevice(0)


def _call(name, *arguments):
    _use_a_device()
    _check(getattr(_driver._library(), name)(*arguments))


_contexts: dict[int, _Any] = {}


def setDevice(device):
    if device not in _contexts:
        context = _ctypes.c_void_p()
        _check(_driver._library().cuInit(0))
        _check(_driver._library().cuDevicePrimaryCtxRetain(_ctypes.byref(context), device))
        _contexts[device] = context
    _check(_driver._library().cuCtxSetCurrent(_contexts[device]))


def getDevice():
    device = _ctypes.c_int()
    _call("cuCtxGetDevice", _ctypes.byref(device))
    return device.value


def getDeviceCount():
    try:
        library = _driver._library()
    except OSError:
        raise RuntimeError("this CuPy is for the simulated card: see tests/gpu/simulated") from None
    count = _ctypes.c_int()
    _check(library.cuInit(0))
    _check(library.cuDeviceGetCount(_ctypes.byref(count)))
    return count.value


def deviceSynchronize():
    _call("cuCtxSynchronize")


def deviceGetAttribute(attrib, device):
    value = _ctypes.c_int()
    _check(_driver._library().cuDeviceGetAttribute(_ctypes.byref(value), attrib, device))
    return value.value


def getDeviceProperties(device):
    if not 0 <= device < getDeviceCount():
        raise CUDARuntimeError(_INVALID_DEVICE)
    number = (_ctypes.c_ubyte * 16)()
    _check(_driver._library().cuDeviceGetUuid_v2(number, device))
    return {
        "name": b"Simulated card",
        "uuid": _uuid.UUID(bytes=bytes(number)).bytes,
        "major": deviceGetAttribute(_CAPABILITY_MAJOR, device),
        "minor": deviceGetAttribute(_CAPABILITY_MINOR, device),
        "totalGlobalMem": memGetInfo()[1],
        "multiProcessorCount": deviceGetAttribute(cudaDevAttrMultiProcessorCount, device),
    }


def driverGetVersion():
    version = _ctypes.c_int()
    _check(_driver._library().cuDriverGetVersion(_ctypes.byref(version)))
    return version.value


def runtimeGetVersion():
    return driverGetVersion()


def memGetInfo():
    free_bytes, total_bytes = _size(), _size()
    _call("cuMemGetInfo_v2", _ctypes.byref(free_bytes), _ctypes.byref(total_bytes))
    return free_bytes.value, total_bytes.value


def malloc(size):
    address = _u64()
    _call("cuMemAlloc_v2", _ctypes.byref(address), _size(size))
    return address.value


def free(ptr):
    _call("cuMemFree_v2", _u64(ptr))


def hostAlloc(size, flags):
    address = _u64()
    _call("cuMemHostAlloc", _ctypes.byref(address), _size(size), flags)
    return address.value


def freeHost(ptr):
    _call("cuMemFreeHost", _u64(ptr))


def hostRegister(ptr, size, flags):
    _call("cuMemHostRegister_v2", _u64(ptr), _size(size), flags)


def hostUnregister(ptr):
    _call("cuMemHostUnregister", _u64(ptr))


def pointerGetAttributes(ptr):
    kind = _ctypes.c_uint(memoryTypeUnregistered)
    _use_a_device()
    status = _driver._library().cuPointerGetAttribute(_ctypes.byref(kind), _MEMORY_TYPE, _u64(ptr))
    if status != _INVALID_VALUE:
        _check(status)
    is_device, is_host = kind.value == memoryTypeDevice, kind.value == memoryTypeHost
    return PointerAttributes(0, ptr if is_device or is_host else 0, 0 if is_device else ptr, kind.value)


def _check_direction(dst, src, kind):
    if kind == memcpyDefault:
        return
    targets, sources = _TYPES_OF_KIND[kind]
    if pointerGetAttributes(dst).type not in targets or pointerGetAttributes(src).type not in sources:
        raise CUDARuntimeError(_INVALID_DIRECTION)


def memcpy(dst, src, size, kind):
    _check_direction(dst, src, kind)
    _call("cuMemcpy", _u64(dst), _u64(src), _size(size))


def memcpyAsync(dst, src, size, kind, stream):
    _check_direction(dst, src, kind)
    _call("cuMemcpyAsync", _u64(dst), _u64(src), _size(size), _u64(stream))


def memset(ptr, value, size):
    memsetAsync(ptr, value, size, 0)


def memsetAsync(ptr, value, size, stream):
    _call("cuMemsetD8Async", _u64(ptr), value, _size(size), _u64(stream))


def streamCreateWithFlags(flags):
    return streamCreateWithPriority(flags, 0)


def streamCreateWithPriority(flags, priority):
    stream = _u64()
    _call("cuStreamCreateWithPriority", _ctypes.byref(stream), flags, priority)
    return stream.value


def streamDestroy(stream):
    _call("cuStreamDestroy_v2", _u64(stream))


def streamSynchronize(stream):
    _call("cuStreamSynchronize", _u64(stream))


def streamQuery(stream):
    _use_a_device()
    return _driver._library().cuStreamQuery(_u64(stream))


def streamWaitEvent(stream, event, flags=0):
    _call("cuStreamWaitEvent", _u64(stream), _u64(event), flags)


def eventCreateWithFlags(flags):
    event = _u64()
    _call("cuEventCreate", _ctypes.byref(event), flags)
    return event.value


def eventDestroy(event):
    _call("cuEventDestroy_v2", _u64(event))


def eventRecord(event, stream):
    _call("cuEventRecord", _u64(event), _u64(stream))


def eventSynchronize(event):
    _call("cuEventSynchronize", _u64(event))


def eventQuery(event):
    _use_a_device()
    return _driver._library().cuEventQuery(_u64(event))


def eventElapsedTime(start, end):
    milliseconds = _ctypes.c_float()
    _call("cuEventElapsedTime", _ctypes.byref(milliseconds), _u64(start), _u64(end))
    return milliseconds.value

"""The seam to CUDA over CuPy, which is imported when a device is asked for and not before."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from kernels.cuda import driver
from kernels.cuda.block_kernels import BlockKernels
from kernels.cuda.kernel import BlockCopy
from kernels.cuda.runtime import Address, CudaError, Event, Stream, canonical_uuid
from kernels.errors import BackendUnavailable

P = ParamSpec("P")
T = TypeVar("T")

# From the CUDA headers; CuPy has no names for them.
_HOST_REGISTER_PORTABLE = 1
_SUCCESS, _NOT_READY = 0, 600

_HIGHEST_PRIORITY = -1_000  # the driver takes the highest there is


def cuda_available() -> str | None:
    """What is missing for blocks to be moved on a GPU; None if nothing is."""
    try:
        import cupy
    except Exception as error:  # a CuPy that is not whole raises anything
        return f"CuPy can't be imported: {error}"
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device is visible"
    except Exception as error:
        return f"no CUDA device can be used: {error}"


def _call(function: Callable[P, T]) -> Callable[P, T]:
    """Makes one type of error of CuPy's two."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            raise CudaError(f"{function.__name__}: {error}") from error

    return call


class CupyDevice:
    """A device by its ordinal. Every call makes it the calling thread's current one, which is a cheap thing to do."""

    def __init__(self, cupy: Any, ordinal: int) -> None:
        self._runtime = cupy.cuda.runtime
        self._ordinal = ordinal
        self._kernels: BlockKernels | None = None
        self._lock = threading.Lock()
        self.uuid = canonical_uuid(driver.device_uuid(ordinal))

    def __repr__(self) -> str:
        return f"<CupyDevice {self._ordinal} {self.uuid}>"

    def use(self) -> None:
        """Makes this the current device of the calling thread."""
        self._runtime.setDevice(self._ordinal)

    @_call
    def prepare(self) -> None:
        self.use()
        with self._lock:
            self._kernels = self._kernels or BlockKernels()

    @_call
    def new_stream(self) -> Stream:
        self.use()
        return Stream(self._runtime.streamCreateWithPriority(self._runtime.streamNonBlocking, _HIGHEST_PRIORITY))

    @_call
    def destroy_stream(self, stream: Stream) -> None:
        self.use()
        self._runtime.streamDestroy(stream)

    @_call
    def drain(self, stream: Stream) -> None:
        self.use()
        self._runtime.streamSynchronize(stream)

    @_call
    def new_event(self) -> Event:
        self.use()
        return Event(self._runtime.eventCreateWithFlags(self._runtime.eventBlockingSync))

    @_call
    def destroy_event(self, event: Event) -> None:
        self.use()
        driver.destroy_event(event)

    @_call
    def record(self, event: Event, stream: Stream) -> None:
        self.use()
        self._runtime.eventRecord(event, stream)

    @_call
    def wait(self, stream: Stream, event: Event) -> None:
        self.use()
        self._runtime.streamWaitEvent(stream, event)

    @_call
    def synchronize(self, event: Event) -> None:
        self.use()
        self._runtime.eventSynchronize(event)

    @_call
    def has_happened(self, event: Event) -> bool:
        self.use()
        status = self._runtime.eventQuery(event)
        if status not in (_SUCCESS, _NOT_READY):
            raise self._runtime.CUDARuntimeError(status)
        return bool(status == _SUCCESS)

    @_call
    def seconds_between(self, first: Event, second: Event) -> float:
        self.use()
        return float(self._runtime.eventElapsedTime(first, second)) / 1e3

    @_call
    def allocate(self, size_bytes: int) -> Address:
        self.use()
        return Address(self._runtime.malloc(size_bytes))

    @_call
    def free(self, address: Address) -> None:
        self.use()
        self._runtime.free(address)

    @_call
    def copy_to_host(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self.use()
        self._runtime.memcpyAsync(target, source, size_bytes, self._runtime.memcpyDeviceToHost, stream)

    @_call
    def copy_to_device(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self.use()
        self._runtime.memcpyAsync(target, source, size_bytes, self._runtime.memcpyHostToDevice, stream)

    @_call
    def gather(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        self.use()
        self._loaded().gather(copy, max_ctas, stream)

    @_call
    def scatter(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        self.use()
        self._loaded().scatter(copy, max_ctas, stream)

    @_call
    def open_memory(self, handle: bytes) -> Address:
        self.use()
        return driver.open_memory(handle)

    @_call
    def close_memory(self, address: Address) -> None:
        self.use()
        driver.close_memory(address)

    @_call
    def bytes_from(self, address: Address) -> int:
        self.use()
        return driver.bytes_from(address)

    @_call
    def open_event(self, handle: bytes) -> Event:
        self.use()
        return driver.open_event(handle)

    def _loaded(self) -> BlockKernels:
        if self._kernels is None:
            raise CudaError("the kernels are not loaded")
        return self._kernels


class CupyRuntime:
    """All visible devices. The kernels are compiled for the first, whose context also registers host memory.

    Raises:
        BackendUnavailable: CuPy, a device or a compiler is missing.
    """

    def __init__(self) -> None:
        if reason := cuda_available():
            raise BackendUnavailable(reason)
        import cupy

        self._runtime = cupy.cuda.runtime
        try:
            devices = [CupyDevice(cupy, ordinal) for ordinal in range(self._runtime.getDeviceCount())]
            devices[0].prepare()
        except (CudaError, OSError) as error:
            raise BackendUnavailable(f"the CUDA devices can't be used: {error}") from error
        self._home = devices[0]
        self.devices: Mapping[str, CupyDevice] = {device.uuid: device for device in devices}

    @_call
    def allocate_pinned(self, size_bytes: int) -> Address:
        self._home.use()
        return Address(self._runtime.hostAlloc(size_bytes, self._runtime.hostAllocPortable))

    @_call
    def free_pinned(self, address: Address) -> None:
        self._home.use()
        self._runtime.freeHost(address)

    @_call
    def register(self, address: Address, size_bytes: int) -> None:
        self._home.use()
        self._runtime.hostRegister(address, size_bytes, _HOST_REGISTER_PORTABLE)

    @_call
    def unregister(self, address: Address) -> None:
        self._home.use()
        self._runtime.hostUnregister(address)

"""The seam to CUDA over CuPy, which is imported only when a device is needed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from kernels.cuda import driver
from kernels.cuda.block_kernels import BlockKernels
from kernels.cuda.kernel import KernelParams
from kernels.cuda.runtime import Address, CudaError, Event, Stream, canonical_uuid
from kernels.errors import BackendError
from kernels.transfer import Direction

# From the CUDA headers; CuPy has no names for them.
_HOST_REGISTER_PORTABLE = 1
_SUCCESS, _NOT_READY = 0, 600

_HIGHEST_PRIORITY = -1_000  # the driver limits this to the highest priority that exists


def cuda_error() -> str | None:
    """Return why no blocks can be copied on a GPU; None if they can."""
    try:
        import cupy
    except Exception as error:  # an incomplete CuPy raises any error
        return f"CuPy can't be imported: {error}"
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "no CUDA device is visible"
    except Exception as error:
        return f"no CUDA device can be used: {error}"


class _HasDevice(Protocol):
    def use(self) -> None: ...


P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D", bound=_HasDevice)


def _on_device(method: Callable[Concatenate[D, P], T]) -> Callable[Concatenate[D, P], T]:
    """Make the device current before a call, which is cheap, and turn CuPy's two types of errors into CudaError."""

    @functools.wraps(method)
    def call(owner: D, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            owner.use()
            return method(owner, *args, **kwargs)
        except RuntimeError as error:
            raise CudaError(f"{method.__name__}: {error}") from error

    return call


class CupyDevice:
    """The device with an ordinal."""

    def __init__(self, cupy: Any, ordinal: int) -> None:
        self._runtime = cupy.cuda.runtime
        self._ordinal = ordinal
        self._kernels: BlockKernels | None = None
        self._lock = threading.Lock()
        self.uuid = canonical_uuid(driver.device_uuid(ordinal))

    def __repr__(self) -> str:
        return f"<CupyDevice {self._ordinal} {self.uuid}>"

    def use(self) -> None:
        """Make this the current device of the calling thread."""
        self._runtime.setDevice(self._ordinal)

    @_on_device
    def prepare(self) -> None:
        with self._lock:
            self._kernels = self._kernels or BlockKernels()

    @_on_device
    def new_stream(self) -> Stream:
        return Stream(self._runtime.streamCreateWithPriority(self._runtime.streamNonBlocking, _HIGHEST_PRIORITY))

    @_on_device
    def destroy_stream(self, stream: Stream) -> None:
        self._runtime.streamDestroy(stream)

    @_on_device
    def drain(self, stream: Stream) -> None:
        self._runtime.streamSynchronize(stream)

    @_on_device
    def new_event(self) -> Event:
        return Event(self._runtime.eventCreateWithFlags(self._runtime.eventBlockingSync))

    @_on_device
    def destroy_event(self, event: Event) -> None:
        driver.destroy_event(event)

    @_on_device
    def record(self, event: Event, stream: Stream) -> None:
        self._runtime.eventRecord(event, stream)

    @_on_device
    def wait(self, stream: Stream, event: Event) -> None:
        self._runtime.streamWaitEvent(stream, event)

    @_on_device
    def synchronize(self, event: Event) -> None:
        self._runtime.eventSynchronize(event)

    @_on_device
    def has_happened(self, event: Event) -> bool:
        status = self._runtime.eventQuery(event)
        if status not in (_SUCCESS, _NOT_READY):
            raise self._runtime.CUDARuntimeError(status)
        return bool(status == _SUCCESS)

    @_on_device
    def seconds_between(self, first: Event, second: Event) -> float:
        return float(self._runtime.eventElapsedTime(first, second)) / 1e3

    @_on_device
    def allocate(self, size_bytes: int) -> Address:
        return Address(self._runtime.malloc(size_bytes))

    @_on_device
    def free(self, address: Address) -> None:
        self._runtime.free(address)

    @_on_device
    def copy_to_host(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self._runtime.memcpyAsync(target, source, size_bytes, self._runtime.memcpyDeviceToHost, stream)

    @_on_device
    def copy_to_device(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self._runtime.memcpyAsync(target, source, size_bytes, self._runtime.memcpyHostToDevice, stream)

    @_on_device
    def launch(self, direction: Direction, params: KernelParams, max_ctas: int, stream: Stream) -> None:
        if self._kernels is None:
            raise CudaError("the kernels are not loaded")
        self._kernels.launch(direction, params, max_ctas, stream)

    @_on_device
    def open_memory(self, handle: bytes) -> Address:
        return driver.open_memory(handle)

    @_on_device
    def close_memory(self, address: Address) -> None:
        driver.close_memory(address)

    @_on_device
    def bytes_from(self, address: Address) -> int:
        return driver.bytes_from(address)

    @_on_device
    def open_event(self, handle: bytes) -> Event:
        return driver.open_event(handle)


class CupyRuntime:
    """All visible devices. The first one compiles the kernels when this is made. Its context registers host memory.

    It needs CuPy, a device and a compiler.

    Raises: BackendError.
    """

    def __init__(self) -> None:
        if reason := cuda_error():
            raise BackendError(reason)
        import cupy

        self._runtime = cupy.cuda.runtime
        try:
            devices = [CupyDevice(cupy, ordinal) for ordinal in range(self._runtime.getDeviceCount())]
            devices[0].prepare()
        except (CudaError, OSError) as error:
            raise BackendError(f"the CUDA devices can't be used: {error}") from error
        self.use = devices[0].use
        self.devices: Mapping[str, CupyDevice] = {device.uuid: device for device in devices}

    @_on_device
    def allocate_pinned(self, size_bytes: int) -> Address:
        return Address(self._runtime.hostAlloc(size_bytes, self._runtime.hostAllocPortable))

    @_on_device
    def free_pinned(self, address: Address) -> None:
        self._runtime.freeHost(address)

    @_on_device
    def register(self, address: Address, size_bytes: int) -> None:
        self._runtime.hostRegister(address, size_bytes, _HOST_REGISTER_PORTABLE)

    @_on_device
    def unregister(self, address: Address) -> None:
        self._runtime.hostUnregister(address)

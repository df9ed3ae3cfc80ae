"""What an attachment holds of a device, each thing given back exactly once."""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
from numpy.typing import NDArray

from kernels.cuda_ipc import ImportedMemory
from kernels.cuda_runtime import Address, CudaDevice, CudaRuntime, Event, Stream


class Resources:
    """Makes streams, events and memory, and gives them all back, the last one first. What can't be made is a CudaError."""

    def __init__(self, runtime: CudaRuntime, device: CudaDevice) -> None:
        self._runtime = runtime
        self._device = device
        self._undoing = contextlib.ExitStack()

    def stream(self) -> Stream:
        """A stream of the device."""
        stream = self._device.new_stream()
        self._undoing.callback(self._device.destroy_stream, stream)
        return stream

    def event(self) -> Event:
        """An event of the device."""
        event = self._device.new_event()
        self._undoing.callback(self._device.destroy_event, event)
        return event

    def memory(self, size_bytes: int) -> Address:
        """Memory of the device."""
        address = self._device.allocate(size_bytes)
        self._undoing.callback(self._device.free, address)
        return address

    def imported(self, memory: ImportedMemory, handle: bytes) -> Address:
        """An allocation of another process."""
        address = memory.open(self._device, handle)
        self._undoing.callback(memory.close, self._device, handle)
        return address

    def pinned_words(self, num_words: int) -> NDArray[np.int64]:
        """Pinned memory of the host."""
        address = self._runtime.allocate_pinned(num_words * 8)
        self._undoing.callback(self._runtime.free_pinned, address)
        return np.ctypeslib.as_array((ctypes.c_int64 * num_words).from_address(address))

    def close(self) -> None:
        """Gives everything back. The caller sees to it that the streams are drained.

        Raises:
            CudaError: something could not be given back; the rest was.
        """
        self._undoing.close()

"""Streams, events and memory of an attachment, each given back exactly once."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable
from typing import ParamSpec

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.ipc import ImportedMemory
from kernels.cuda.runtime import Address, CudaDevice, CudaError, CudaRuntime, Event, Stream

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class Resources:
    """The streams, events and memory of an attachment on `device`.

    `close` first ends the users of all that, then unmaps memory of other processes, then gives back the rest. The rest
    may wait for all work of the device, and the memory of a dead engine must not wait for that.

    Each method that makes something may fail.

    Raises: CudaError.
    """

    def __init__(self, runtime: CudaRuntime, device: CudaDevice) -> None:
        self.device = device
        self._runtime = runtime
        self._ending = contextlib.ExitStack()
        self._unmapping = contextlib.ExitStack()
        self._giving_back = contextlib.ExitStack()

    def stream(self) -> Stream:
        """Return a new stream of the device."""
        stream = self.device.new_stream()
        self._giving_back.callback(self.device.destroy_stream, stream)
        return stream

    def event(self) -> Event:
        """Return a new event of the device."""
        event = self.device.new_event()
        self._giving_back.callback(self.device.destroy_event, event)
        return event

    def memory(self, size_bytes: int) -> Address:
        """Return new memory of the device."""
        address = self.device.allocate(size_bytes)
        self._giving_back.callback(self.device.free, address)
        return address

    def imported(self, memory: ImportedMemory, handle: bytes) -> Address:
        """Map an allocation of another process; return where it begins."""
        address = memory.open(self.device, handle)
        self._unmapping.callback(memory.close, self.device, handle)
        return address

    def pinned_words(self, num_words: int) -> NDArray[np.int64]:
        """Return new pinned memory of the host."""
        address = self._runtime.allocate_pinned(num_words * 8)
        self._giving_back.callback(self._runtime.free_pinned, address)
        return np.ctypeslib.as_array((ctypes.c_int64 * num_words).from_address(address))

    def on_close(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a function before anything is given back; the last one that was added is called first."""
        self._ending.callback(function, *args, **kwargs)

    def close(self) -> None:
        """Give everything back, as far as the device permits it."""
        for stack in (self._ending, self._unmapping, self._giving_back):
            try:
                stack.close()
            except CudaError as error:  # one of them: the stack goes on after it
                logger.warning("not everything could be given back to %s: %s", self.device, error)

"""Streams and memory as objects, which give themselves back."""

import threading as _threading

from . import compiler, driver, runtime

__all__ = [
    "ExternalStream",
    "Memory",
    "MemoryPointer",
    "PinnedMemory",
    "PinnedMemoryPointer",
    "Stream",
    "alloc",
    "alloc_pinned_memory",
    "compiler",
    "driver",
    "get_current_stream",
    "runtime",
]


class _Current(_threading.local):
    """The streams that this thread has entered, the innermost last."""

    def __init__(self):
        self.streams = []


_current = _Current()


class _BaseStream:
    """A stream; launches in a ``with`` block of it go to it."""

    def __init__(self, ptr):
        self.ptr = ptr

    def __enter__(self):
        _current.streams.append(self)
        return self

    def __exit__(self, *error):
        _current.streams.pop()

    def synchronize(self):
        runtime.streamSynchronize(self.ptr)


class Stream(_BaseStream):
    """A stream of its own, destroyed with the object."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._is_owned = not (null or ptds)
        flags = runtime.streamNonBlocking if non_blocking else runtime.streamDefault
        super().__init__(runtime.streamCreateWithPriority(flags, priority or 0) if self._is_owned else int(ptds) * 2)

    def __del__(self):
        if getattr(self, "_is_owned", False) and hasattr(self, "ptr"):
            runtime._quietly("cuStreamDestroy_v2", self.ptr)


class ExternalStream(_BaseStream):
    """A stream that another owner destroys."""

    def __init__(self, ptr, device_id=-1):
        super().__init__(ptr)
        self.device_id = device_id


def get_current_stream(device_id=-1):
    """Return the innermost stream that this thread has entered."""
    return _current.streams[-1] if _current.streams else Stream(null=True)


class Memory:
    """Memory of the device of exactly this size, freed with the object."""

    def __init__(self, size):
        self.size = size
        self.ptr = runtime.malloc(size) if size else 0

    def __del__(self):
        if getattr(self, "ptr", 0):
            runtime._quietly("cuMemFree_v2", self.ptr)


class PinnedMemory:
    """Pinned memory of the host, freed with the object."""

    def __init__(self, size, flags=0):
        self.ptr = runtime.hostAlloc(size, flags) if size else 0

    def __del__(self):
        if getattr(self, "ptr", 0):
            runtime._quietly("cuMemFreeHost", self.ptr)


class MemoryPointer:
    """An address in memory of the device, which it keeps alive."""

    def __init__(self, mem, offset):
        self.mem = mem
        self.ptr = mem.ptr + offset


class PinnedMemoryPointer:
    """An address in pinned memory, which it keeps alive."""

    def __init__(self, mem, offset):
        self.mem = mem
        self.ptr = mem.ptr + offset


def alloc(size):
    """Return memory of the device. There is no pool, so every access behind its end is detected."""
    return MemoryPointer(Memory(size), 0)


def alloc_pinned_memory(size):
    """Return pinned memory of the host."""
    return PinnedMemoryPointer(PinnedMemory(size), 0)

"""Replacements of functions and classes of torch.cuda."""

import contextlib
import ctypes
import types
import uuid

import torch

from .driver import call, issue_event, reach_event, u64
from .line import line
from .segments import segments

__all__ = [
    "Event",
    "Stream",
    "_sleep",
    "current_device",
    "current_stream",
    "default_stream",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "init",
    "is_available",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "mem_get_info",
    "memory_allocated",
    "set_device",
    "stream",
    "synchronize",
]

_CYCLES_PER_SECOND = 1.5e9
_DISABLE_TIMING, _INTERPROCESS = 2, 4


class Stream:
    """A stream; all of them share one line of work."""

    def __init__(self, device=None, priority=0, **kwargs):
        self.device = torch.device("cuda", 0)
        self.priority = priority
        pointer = u64()
        call("cuStreamCreateWithPriority", ctypes.byref(pointer), 1, priority)
        self.cuda_stream = pointer.value

    def synchronize(self):
        line.wait()

    def query(self):
        return not line.is_busy

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        """Do nothing: all work of the card is done in the order of one queue."""

    def wait_stream(self, stream):
        """Do nothing: all work of the card is done in the order of one queue."""


class Event:
    """An event, which the driver makes when it is recorded for the first time."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False, external=False):
        self._flags = (0 if enable_timing else _DISABLE_TIMING) | (_INTERPROCESS if interprocess else 0)
        self.device = torch.device("cuda", 0)
        self.cuda_event = 0

    def __del__(self):
        if self.cuda_event:
            with contextlib.suppress(RuntimeError):  # the context may have ended before
                call("cuEventDestroy_v2", u64(self.cuda_event))

    def record(self, stream=None):
        """Record the event behind all work that is in the queue."""
        self._make()
        if line.is_busy:
            record = issue_event(self.cuda_event)
            line.add(lambda: reach_event(self.cuda_event, record))
        else:
            call("cuEventRecord", u64(self.cuda_event), u64(0))

    def wait(self, stream=None):
        """Do nothing: all work of the card is done in the order of one queue."""

    def query(self):
        return not line.is_busy

    def synchronize(self):
        line.wait()

    def elapsed_time(self, end_event):
        milliseconds = ctypes.c_float()
        line.wait()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), u64(self.cuda_event), u64(end_event.cuda_event))
        return milliseconds.value

    def ipc_handle(self):
        self._make()
        handle = (ctypes.c_ubyte * 64)()
        call("cuIpcGetEventHandle", handle, u64(self.cuda_event))
        return bytes(handle)

    def _make(self):
        if not self.cuda_event:
            event = u64()
            call("cuEventCreate", ctypes.byref(event), self._flags)
            self.cuda_event = event.value


def _sleep(cycles):
    line.sleep(cycles / _CYCLES_PER_SECOND)


def synchronize(device=None):
    call("cuCtxSynchronize")
    line.wait()


def empty_cache():
    line.wait()
    segments.empty_cache()


@contextlib.contextmanager
def stream(stream):
    yield


def current_stream(device=None):
    return types.SimpleNamespace(cuda_stream=0, synchronize=line.wait, wait_event=lambda event: None)


default_stream = current_stream


def mem_get_info(device=None):
    free_bytes, total_bytes = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free_bytes), ctypes.byref(total_bytes))
    return free_bytes.value, total_bytes.value


def memory_allocated(device=None):
    return segments.used_bytes


def get_device_properties(device=None):
    number = (ctypes.c_ubyte * 16)()
    call("cuDeviceGetUuid_v2", number, 0)
    return types.SimpleNamespace(
        name=get_device_name(),
        uuid=uuid.UUID(bytes=bytes(number)),
        total_memory=mem_get_info()[1],
        major=9,
        minor=0,
        multi_processor_count=2,
    )


def get_device_name(device=None):
    return "Simulated card"


def get_device_capability(device=None):
    return 9, 0


def is_available():
    return True


def is_initialized():
    return True


def init():
    call("cuCtxSynchronize")


def device_count():
    return 1


def current_device():
    return 0


def set_device(device):
    if torch.device("cuda", device).index if isinstance(device, int) else torch.device(device).index:
        raise RuntimeError("CUDA error: invalid device ordinal")


def manual_seed(seed):
    """Do nothing, because values come from the CPU's generator."""


manual_seed_all = manual_seed

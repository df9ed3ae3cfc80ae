"""A CUDA runtime without a device, which really copies bytes, in memory of this process.

Each operation has a clock of the operations before it. So each schedule finds two operations that touch the same byte
without an order between them, also if the bytes happen to be right. `faults` has all findings.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.cuda.kernel import KernelParams
from kernels.cuda.runtime import Address, CudaError, Event, Stream
from kernels.transfer import Direction
from tests.kernels.cuda.fake_cuda_launch import Launch
from tests.kernels.cuda.fake_cuda_memory import Bytes, Touch, TouchableMemory, bytes_at
from tests.kernels.cuda.fake_cuda_streams import FakeStreams, Operation

FAKE_UUID = "00000000-0000-0000-0000-0000000000aa"


@dataclass(eq=False)
class FakeEvent:
    """An event as it was last recorded, or one of an engine."""

    recorded: Operation | None = None
    is_foreign: bool = False
    has_happened: bool = False


class FakeCuda:
    """The runtime and its only device. `calls` has the names of all calls; call number ``fail_call`` raises.

    If ``is_fatal``, the device is dead afterwards: it does nothing more, and each call raises.
    """

    def __init__(self, seed: int = 0) -> None:
        self.uuid = FAKE_UUID
        self.devices: dict[str, FakeCuda] = {FAKE_UUID: self}
        self.calls: list[str] = []
        self.faults: list[str] = []
        self.fail_call = 0
        self.is_fatal = False
        self._memory = TouchableMemory()
        self.streams = FakeStreams(seed, self._memory, self.faults)
        self._random = random.Random(seed)
        self._is_prepared = False
        self._ids = itertools.count(1)
        self._allocated: list[Bytes] = []
        self._events: dict[Event, FakeEvent] = {}
        self._exported_memory: dict[bytes, Bytes] = {}
        self._exported_events: dict[bytes, FakeEvent] = {}

    # For the tests.

    def export_memory(self, memory: Bytes, handle: bytes = b"") -> bytes:
        """Return a handle of memory of this process, as if it were an engine's, on a device."""
        handle = handle or b"memory".ljust(56) + len(self._exported_memory).to_bytes(8, "little")
        self._exported_memory[handle] = memory
        return handle

    def export_event(self) -> bytes:
        """Return a handle of an engine's event that has not happened."""
        handle = b"event".ljust(56) + len(self._exported_events).to_bytes(8, "little")
        self._exported_events[handle] = FakeEvent(is_foreign=True)
        return handle

    def add_device(self, uuid: str) -> FakeCuda:
        """Add another device of the same machine, with `calls` of its own."""
        device = self.devices[uuid] = copy.copy(self)
        device.uuid, device.calls, device._is_prepared = uuid, [], False
        return device

    def happen(self, handle: bytes) -> None:
        self._exported_events[handle].has_happened = True

    def left_over(self) -> Sequence[str]:
        """Return the objects that were made and not given back."""
        memory = [f"{memory.kind} memory" for memory in self._memory.all]
        return [*memory, *["a stream"] * len(self.streams), *["an event"] * len(self._events)]

    # The runtime.

    def allocate_pinned(self, size_bytes: int) -> Address:
        self._call("allocate_pinned")
        return self._allocate("pinned", size_bytes)

    def free_pinned(self, address: Address) -> None:
        self._remove("pinned", address)

    def register(self, address: Address, size_bytes: int) -> None:
        self._call("register")
        if self._memory.holding(address):
            self.faults.append("what is registered is registered again")
        self._memory.add("registered", bytes_at(address, size_bytes))

    def unregister(self, address: Address) -> None:
        self._remove("registered", address)

    # The device.

    def prepare(self) -> None:
        self._call("prepare")
        self._is_prepared = True

    def allocate(self, size_bytes: int) -> Address:
        self._call("allocate")
        return self._allocate("device", size_bytes)

    def free(self, address: Address) -> None:
        self._remove("device", address)

    def open_memory(self, handle: bytes) -> Address:
        self._call("open_memory")
        if handle not in self._exported_memory:
            raise CudaError("there is no such memory")
        memory = self._exported_memory[handle]
        if self._memory.holding(memory.ctypes.data):
            self.faults.append("a handle is opened twice")
        return self._memory.add("imported", memory)

    def close_memory(self, address: Address) -> None:
        self._remove("imported", address)

    def bytes_from(self, address: Address) -> int:
        self._call("bytes_from")
        memory = self._memory.holding(address)
        assert memory is not None
        return memory.end - address

    def new_stream(self) -> Stream:
        self._call("new_stream")
        stream = Stream(next(self._ids))
        self.streams.add(stream)
        return stream

    def destroy_stream(self, stream: Stream) -> None:
        self.streams.remove(stream)
        self._call("destroy_stream")

    def drain(self, stream: Stream) -> None:
        self._call("drain", is_fatal=True)
        self.streams.drain(stream)

    def new_event(self) -> Event:
        self._call("new_event")
        event = Event(next(self._ids))
        self._events[event] = FakeEvent()
        return event

    def open_event(self, handle: bytes) -> Event:
        self._call("open_event")
        if handle not in self._exported_events:
            raise CudaError("there is no such event")
        event = Event(next(self._ids))
        self._events[event] = self._exported_events[handle]
        return event

    def destroy_event(self, event: Event) -> None:
        del self._events[event]
        self._call("destroy_event")

    def record(self, event: Event, stream: Stream) -> None:
        self._call("record")
        self._events[event].recorded = self.streams.issue(stream, "record", lambda _: None)

    def wait(self, stream: Stream, event: Event) -> None:
        self._call("wait")
        if self._events[event].is_foreign:
            self.faults.append("a stream waits for a process that may be killed")
        self.streams.issue(stream, "wait", lambda _: None, self._events[event].recorded)

    def synchronize(self, event: Event) -> None:
        self._call("synchronize", is_fatal=True)
        recorded = self._events[event].recorded
        assert recorded is not None
        self.streams.finish(recorded)

    def seconds_between(self, first: Event, second: Event) -> float:
        self._call("seconds_between")
        begin, end = (self._events[event].recorded for event in (first, second))
        if begin is None or end is None or not (begin.is_done and end.is_done):
            raise CudaError("an event has not happened")
        return end.done_at - begin.done_at

    def has_happened(self, event: Event) -> bool:
        self._call("has_happened")
        return self._events[event].has_happened

    def copy_to_host(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self._call("copy_to_host")
        self._check_pinned(target, size_bytes)
        self.streams.issue(stream, "copy_to_host", lambda touch: self._copy(touch, target, source, size_bytes))

    def copy_to_device(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        self._call("copy_to_device")
        self._check_pinned(source, size_bytes)
        content = bytes_at(source, size_bytes).copy()

        def run(touch: Touch) -> None:
            if not np.array_equal(content, bytes_at(source, size_bytes)):
                self.faults.append("what is copied to the device is changed before it is")
            self._copy(touch, target, source, size_bytes)

        self.streams.issue(stream, "copy_to_device", run)

    def launch(self, direction: Direction, params: KernelParams, max_ctas: int, stream: Stream) -> None:
        name = "gather" if direction is Direction.STORE else "scatter"
        self._call(name)
        if not self._is_prepared:
            self.faults.append("the kernels are compiled while a transfer waits")

        def run(touch: Touch) -> None:
            launch = Launch(self._memory, touch, params)
            if not launch.is_aligned:
                self.faults.append("an access is not aligned")
            launch.run(direction)

        self.streams.issue(stream, name, run)

    # Internals.

    def _call(self, name: str, *, is_fatal: bool = False) -> None:
        self.calls.append(name)
        self.fail_call -= 1
        if self.fail_call == 0:
            self.streams.is_dead = self.streams.is_dead or is_fatal or self.is_fatal
            raise CudaError(f"{name} was made to fail")
        if self.streams.is_dead:
            raise CudaError(f"{name}: the device is dead")

    def _allocate(self, kind: str, size_bytes: int) -> Address:
        """Return memory at a multiple of 256, full of noise."""
        noise = np.frombuffer(self._random.randbytes(size_bytes + 256), dtype=np.uint8).copy()
        self._allocated.append(noise)
        start = -noise.ctypes.data % 256
        return self._memory.add(kind, noise[start : start + size_bytes])

    def _remove(self, kind: str, address: Address) -> None:
        self._memory.remove(kind, address)
        self._call(f"free {kind} memory")

    def _check_pinned(self, address: Address, size_bytes: int) -> None:
        memory = self._memory.holding(address, size_bytes)
        if memory is None or memory.kind not in ("pinned", "registered"):
            raise CudaError("a copy is not within one registration")

    def _copy(self, touch: Touch, target: Address, source: Address, size_bytes: int) -> None:
        span = np.arange(size_bytes)
        self._memory.write(touch, target + span, self._memory.read(touch, source + span))

"""Streams of the fake CUDA: operations are done in the order of each stream, and otherwise in a random one."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kernels.cuda.runtime import CudaError, Stream
from tests.kernels.cuda.fake_cuda_memory import Clock, IllegalAddress, Touch, TouchableMemory, merge


@dataclass(eq=False)
class Operation:
    """Something in a stream. Its touch is complete when it is done."""

    touch: Touch
    run: Callable[[Touch], None]
    waits_for: Operation | None = None
    is_done: bool = False
    done_at: float = 0.0

    @property
    def can_run(self) -> bool:
        return self.waits_for is None or self.waits_for.is_done


class FakeStreams:
    """All streams of the device, with a vector clock for each of them and for each thread that issues.

    ``done`` has the names of all operations that are done; the device's ``clock`` gives their times. The operation
    number ``fail_at`` is not done: it kills the device.
    """

    def __init__(self, seed: int, memory: TouchableMemory, faults: list[str]) -> None:
        self.thread = "main"
        self.done: list[str] = []
        self.fail_at = 0
        self.clock: Callable[[], float] = time.monotonic
        self.is_dead = False
        self._random = random.Random(seed)
        self._memory = memory
        self._faults = faults
        self._queues: dict[Stream, deque[Operation]] = {}
        self._clocks: dict[str, Clock] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def num_issued(self) -> int:
        """Return the number of operations that are not done."""
        return sum(len(queue) for queue in self._queues.values())

    @contextmanager
    def acting(self, thread: str) -> Iterator[None]:
        """Make calls as this thread while the block runs."""
        before, self.thread = self.thread, thread
        yield
        self.thread = before

    def synchronize(self, source: str, target: str) -> None:
        """Order the target's next operations after all that the source has seen done."""
        merge(self._clocks.setdefault(target, {}), self._clocks.get(source, {}))

    def add(self, stream: Stream) -> None:
        self._queues[stream] = deque()

    def remove(self, stream: Stream) -> None:
        if self._queues.pop(stream) and not self.is_dead:
            self._faults.append("a stream is destroyed that is not drained")

    def issue(
        self, stream: Stream, name: str, run: Callable[[Touch], None], waits_for: Operation | None = None
    ) -> Operation:
        with self._lock:
            clock, actor = self._clocks.setdefault(f"stream {stream}", {}), f"stream {stream}"
            merge(clock, self._clocks.get(self.thread, {}))
            if waits_for is not None:
                merge(clock, waits_for.touch.clock)
            clock[actor] = clock.get(actor, 0) + 1
            operation = Operation(Touch(actor, name, dict(clock)), run, waits_for)
            self._queues[stream].append(operation)
            return operation

    def step(self) -> bool:
        """Do one operation of a random stream; return whether there was one."""
        with self._lock:
            ready = [queue for queue in self._queues.values() if queue and queue[0].can_run]
            if not ready or self.is_dead:
                return False
            operation = self._random.choice(ready).popleft()
            self.fail_at -= 1
            if self.fail_at == 0:
                self.is_dead = True
                return False
            try:
                operation.run(operation.touch)
            except IllegalAddress:
                self._faults.append(f"{operation.touch.name} touches what it must not")
                self.is_dead = True
            operation.is_done, operation.done_at = True, self.clock()
            self.done.append(operation.touch.name)
            self._faults += self._memory.races(operation.touch)
            return True

    def finish(self, operation: Operation) -> None:
        """Do random operations until one operation is done. Order the thread's next operations after it."""
        with self._lock:
            while not operation.is_done:
                self._must_step()
        merge(self._clocks.setdefault(self.thread, {}), operation.touch.clock)

    def drain(self, stream: Stream) -> None:
        """Do random operations until a stream is empty."""
        with self._lock:
            while self._queues[stream]:
                self._must_step()
        merge(self._clocks.setdefault(self.thread, {}), self._clocks.get(f"stream {stream}", {}))

    def _must_step(self) -> None:
        if not self.step():
            if not self.is_dead:
                self._faults.append("a thread waits, and nothing can be done")
                self.is_dead = True
            raise CudaError("the device is dead")

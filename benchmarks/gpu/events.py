"""What it costs that events on the streams have times."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

from benchmarks.figures import Figure
from benchmarks.gpu.rig import Rig, finish, in_turns, starts_of
from benchmarks.gpu.sizes import SMALL_TOKENS, Sizes
from kernels.cuda.runtime import CudaDevice, CudaRuntime, Event
from kernels.cuda.settings import CudaSettings

RUN_KIB = 64
BLOCKS = 3
ROUNDS_FACTOR = 4


class UntimedDevice:
    """A device with events that can be waited for, but have no times."""

    def __init__(self, device: CudaDevice) -> None:
        import cupy

        self._device = device
        self._runtime: Any = cupy.cuda.runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def new_event(self) -> Event:
        """As `CupyDevice.new_event`, less the timing."""
        self._runtime.setDevice(0)
        flags = self._runtime.eventBlockingSync | self._runtime.eventDisableTiming
        return Event(self._runtime.eventCreateWithFlags(flags))

    def seconds_between(self, first: Event, second: Event) -> float:
        """Always 0: these events have no times."""
        return 0.0


class UntimedRuntime:
    """A runtime with one such device."""

    def __init__(self, opened: Rig) -> None:
        self._runtime = opened.runtime
        self.devices: dict[str, Any] = {opened.device.uuid: UntimedDevice(opened.device)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Transfers with timed events beside the same transfers with events that are not, in turns."""
    with closing(Rig(sizes, sizes.tokens)) as opened:
        untimed: Any = UntimedRuntime(opened)
        for num_tokens in (SMALL_TOKENS, sizes.tokens):
            medians: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
            for _ in range(BLOCKS):
                for number, runtime in enumerate((opened.runtime, untimed)):
                    for case, seconds in medians_of(opened, runtime, num_tokens).items():
                        medians[case][number].append(seconds * 1e6)
            for case, (timed, beside) in medians.items():
                what = f"{case} of {num_tokens:,} tokens with timed events"
                yield Figure(what=what, unit="µs", values=timed, beside="events without times", beside_values=beside)


def medians_of(opened: Rig, runtime: CudaRuntime, num_tokens: int) -> dict[str, float]:
    """The median seconds of each case, of a backend of its own: L1 can be registered by one at a time."""
    with opened.backend(CudaSettings(), runtime=runtime) as backend, opened.buffer(backend, RUN_KIB) as buffer:
        return {
            case: statistics.median(*in_turns(ROUNDS_FACTOR * opened.sizes.rounds, partial(finish, starts)))
            for case, starts in starts_of(buffer, num_tokens).items()
        }

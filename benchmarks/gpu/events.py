"""The cost of timed events on the streams."""

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
    """A device with events that record no times."""

    def __init__(self, device: CudaDevice) -> None:
        import cupy

        self._device = device
        self._runtime: Any = cupy.cuda.runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def new_event(self) -> Event:
        """Return an event as `CupyDevice.new_event` does, but without timing."""
        self._runtime.setDevice(0)
        flags = self._runtime.eventBlockingSync | self._runtime.eventDisableTiming
        return Event(self._runtime.eventCreateWithFlags(flags))

    def seconds_between(self, first: Event, second: Event) -> float:
        """Return 0, because these events have no times."""
        return 0.0


class UntimedRuntime:
    """A runtime with one untimed device."""

    def __init__(self, opened: Rig) -> None:
        self._runtime = opened.runtime
        self.devices: dict[str, Any] = {opened.device.uuid: UntimedDevice(opened.device)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Measure transfers with timed events and with untimed events alternately."""
    with closing(Rig(sizes, sizes.tokens)) as opened:
        untimed_runtime: Any = UntimedRuntime(opened)
        for num_tokens in (SMALL_TOKENS, sizes.tokens):
            medians: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
            for _ in range(BLOCKS):
                for number, runtime in enumerate((opened.runtime, untimed_runtime)):
                    for case, seconds in medians_of(opened, runtime, num_tokens).items():
                        medians[case][number].append(seconds * 1e6)
            for case, (timed, untimed) in medians.items():
                what = f"{case} of {num_tokens:,} tokens with timed events"
                yield Figure(
                    what=what, unit="µs", values=timed, baseline="events without times", baseline_values=untimed
                )


def medians_of(opened: Rig, runtime: CudaRuntime, num_tokens: int) -> dict[str, float]:
    """Return the median seconds of each case. The backend is new, because only one may register L1."""
    with opened.backend(CudaSettings(), runtime=runtime) as backend, opened.buffer(backend, RUN_KIB) as buffer:
        return {
            case: statistics.median(*in_turns(ROUNDS_FACTOR * opened.sizes.rounds, partial(finish, starts)))
            for case, starts in starts_of(buffer, num_tokens).items()
        }

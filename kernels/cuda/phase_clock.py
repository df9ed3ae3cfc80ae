"""When the steps of a lane began and ended, as the device says."""

from __future__ import annotations

import time

from kernels.cuda.runtime import CudaDevice, Event
from kernels.cuda.staging_ring import StagingRing


class PhaseClock:
    """Reads events of a ring on the host's monotonic clock, in seconds.

    What is between two of them the device has measured. Its clock and the host's are joined at an event that is
    recorded while the streams are idle, so that it happens at once; the error of that is the same for all events until
    the clocks are joined anew. CUDA counts milliseconds in 24 bits: a lane that has not been idle for an hour tells
    times to a quarter of one.
    """

    def __init__(self, device: CudaDevice, ring: StagingRing, joint: Event) -> None:
        self._device = device
        self._ring = ring
        self._joint = joint
        self._joined_at = 0.0

    def join(self) -> None:
        """Joins both clocks; to be called only when the lane is idle, and no transfer that has begun goes on."""
        self._joined_at = time.monotonic()
        self._ring.mark(self._joint)

    def read(self, event: Event) -> float:
        """When an event happened that a thread has waited for, or that comes before such a one."""
        return self._joined_at + self._device.seconds_between(self._joint, event)

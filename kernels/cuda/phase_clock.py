"""When the phases of steps began and ended, as the device measures it."""

from __future__ import annotations

import time

from kernels.cuda.runtime import CudaDevice, Event
from kernels.cuda.staging_ring import StagingRing


class PhaseClock:
    """The timing events of a ring, as times of the host's monotonic clock, in seconds.

    The device measures the time from a reference event to another one. The reference event is recorded while the
    streams are idle, so that it happens immediately. The host's clock is read just before. The error of that reading
    is the same for all events until the next calibration. CUDA counts milliseconds in 24 bits: after an hour without a
    calibration, times are exact to a quarter of a millisecond.
    """

    def __init__(self, device: CudaDevice, ring: StagingRing, reference_event: Event) -> None:
        self._device = device
        self._ring = ring
        self._reference_event = reference_event
        self._reference_time = 0.0

    def calibrate(self) -> None:
        """Record the reference event anew. Call it only while the ring is idle and no transfer has begun."""
        self._reference_time = time.monotonic()
        self._ring.record(self._reference_event)

    def read(self, event: Event) -> float:
        """Return when an event happened. A thread has waited for it, or for a later one."""
        return self._reference_time + self._device.seconds_between(self._reference_event, event)

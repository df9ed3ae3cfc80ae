"""The definitions of the metrics of a recording of requests."""

from __future__ import annotations

from telemetry.metrics.metric import Metric, counter, gauge

RECORDING = gauge(
    "kvdepot.recording.active",
    "",
    "1 while requests are recorded, 0 after the file could not be written. Exists with record_trace.",
)
RECORDED = counter("kvdepot.recording.requests", "{request}", "Requests that were recorded.")
RECORDING_DROPPED = counter(
    "kvdepot.recording.dropped",
    "{call}",
    "Lookups and stores that were not recorded: the recorder was too slow, or its file could not be written.",
)

RECORDING_METRICS: tuple[Metric, ...] = (RECORDING, RECORDED, RECORDING_DROPPED)

"""The bucket boundaries of the histograms: seconds, and bytes a second."""

from __future__ import annotations

# Engines reuse a block within a step or after hours: 1 ms to 8 hours, two or three a decade, in round units.
LIFECYCLE_SECONDS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0, 28_800.0),
)
CALL_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
# A chunk comes from a disk in half a millisecond, from an object store in tens of them. No read takes longer than 2 s.
TIER_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0),
)
LAG_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
THROUGHPUT = (
    *(50e6, 100e6, 250e6, 500e6, 1e9, 2.5e9, 5e9, 7.5e9, 10e9, 15e9, 20e9, 25e9, 30e9),
    *(40e9, 50e9, 75e9, 100e9, 200e9, 400e9),
)

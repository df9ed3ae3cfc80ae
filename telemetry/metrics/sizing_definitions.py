"""The definitions of the metrics of what other sizes of L1, and other eviction policies, would have hit."""

from __future__ import annotations

from telemetry.metrics.metric import Attribute, Metric, counter, gauge

POLICY = Attribute("policy", "the eviction policy", ("lru", "lfu", "lru2", "learned"))
SIZE = Attribute(
    "size",
    "the size of the simulated cache: `1x` is the present L1. `l1+disk` is the present L1 with the tier named disk. "
    "There are as many as sizes that are simulated, and one for each tier whose size is known",
)

EVICTION_POLICY = gauge("kvdepot.eviction.policy", "", "1 for the eviction policy in use, 0 for the others.", POLICY)
SIZING_ASKED = counter(
    "kvdepot.sizing.asked_tokens", "{token}", "Tokens that lookups asked for, as the simulations count them."
)
SIZING_DEPOT_HIT = counter(
    "kvdepot.sizing.depot_hit_tokens", "{token}", "Part of the asked tokens that the depot hit, tiers included."
)
SIZING_HIT = counter(
    "kvdepot.sizing.hit_tokens",
    "{token}",
    "Part of the asked tokens that a cache of this size would have hit, estimated from a sample. Its rate divided by "
    "that of the asked tokens is the hit ratio of any time.",
    *(POLICY, SIZE),
)
SIZING_HIT_IO = counter(
    "kvdepot.sizing.hit", "By", "Bytes of the chunks that a cache of this size would have hit.", POLICY, SIZE
)
SIZING_PREFILL_SAVED = counter(
    "kvdepot.sizing.prefill_saved",
    "s",
    "Time that engines would have needed to compute the tokens that a cache of this size would have hit. It counts "
    "only lookups of engines that say how fast they compute.",
    *(POLICY, SIZE),
)
SIZING_DEPOT_RATIO = gauge(
    "kvdepot.sizing.depot_hit_ratio",
    "",
    "Share of the asked tokens that the depot hit in the last hour, tiers included. Exists while there are enough.",
)
SIZING_RATIO = gauge(
    "kvdepot.sizing.hit_ratio",
    "",
    "Share of the asked tokens that a cache of this size would have hit in the last hour. Exists while there are "
    "enough uses for an estimate.",
    *(POLICY, SIZE),
)
SIZING_RATIO_ERROR = gauge(
    "kvdepot.sizing.hit_ratio.error",
    "",
    "Standard error of that share. The true value is within two of them in 19 of 20 cases.",
    *(POLICY, SIZE),
)

SIZING_METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order in which they stand above."""

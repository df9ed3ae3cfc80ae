"""``python -m benchmarks [NAME …]``: figures and the limits of the machine, from the same run.

Without names: all of them, and the tables are written to ``benchmarks/results/``.
"""

from __future__ import annotations

import sys
from types import ModuleType

import uvloop

from benchmarks import (
    checksums,
    connector,
    head_shards,
    holds,
    index,
    inline,
    keys,
    kv_events,
    load,
    lookups,
    recording,
    sglang,
    startup,
    telemetry,
    tiers,
    tiers_disk,
    tiers_first_token,
    tiers_lookups,
    tiers_tails,
    transfers,
)
from benchmarks.figures import Report

BENCHMARKS: dict[str, tuple[str, ModuleType]] = {
    "transfers": ("Blocks moved on the CPU", transfers),
    "checksums": ("What checksums cost", checksums),
    "lookups": ("Lookups", lookups),
    "inline": ("Bytes that ride on the call", inline),
    "load": ("The tail under load", load),
    "holds": ("How long a message holds up others", holds),
    "keys": ("Chunk keys", keys),
    "index": ("The index", index),
    "connector": ("vLLM's connector", connector),
    "head_shards": ("Shards of heads of the connector", head_shards),
    "sglang": ("SGLang's backend", sglang),
    "startup": ("Start", startup),
    "tiers": ("Each tier beside its bare client", tiers),
    "tiers_disk": ("The disk tier", tiers_disk),
    "tiers_lookups": ("Lookups that miss in tiers", tiers_lookups),
    "tiers_tails": ("What tiers cost other engines", tiers_tails),
    "tiers_first_token": ("The first token from the disk", tiers_first_token),
    "telemetry": ("What watching costs", telemetry),
    "kv_events": ("KV events for routers", kv_events),
    "recording": ("What a recording costs", recording),
}


def main(names: list[str]) -> None:
    """Measure and print."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"there is no {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        title, module = BENCHMARKS[name]
        report = Report(title=title, figures=uvloop.run(module.measure()))
        report.print()
        if not names:
            report.write(name)


if __name__ == "__main__":
    main(sys.argv[1:])

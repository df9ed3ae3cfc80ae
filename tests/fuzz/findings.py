"""The findings of a run, and a summary of its calls."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.fuzz.rpcs import RPCS, fields_of


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be. `calls` are those that were under way, the likely one first."""

    what: str
    calls: tuple[int, ...]
    request: str = ""

    @property
    def key(self) -> str:
        """Equal for findings that are likely of one cause."""
        return re.sub(r"'[^']*'|\b[0-9a-f]{6,}\b|\d+", "#", self.what)[:80]


@dataclass
class Report:
    """The findings of a run, each kind once, with how often it was seen; and counts of all that was done."""

    seed: int
    findings: dict[str, Finding] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: set[str] = field(default_factory=set)
    longest_hold: tuple[float, tuple[int, ...]] = (0.0, ())
    longest_cpu_hold: tuple[float, tuple[int, ...]] = (0.0, ())
    latencies: dict[str, float] = field(default_factory=dict)
    witnessed: dict[str, int] = field(default_factory=dict)
    usage: list[dict[str, int]] = field(default_factory=list)

    def add(self, finding: Finding) -> bool:
        """Note a finding; return whether it is the first of its kind."""
        self.seen[finding.key] += 1
        return self.findings.setdefault(finding.key, finding) is finding

    def note_delay(self, seconds: float, cpu_seconds: float, calls: tuple[int, ...]) -> None:
        """Note how long the loop was delayed while these calls ran."""
        self.longest_hold = max(self.longest_hold, (seconds, calls))
        self.longest_cpu_hold = max(self.longest_cpu_hold, (cpu_seconds, calls))

    def never_changed(self) -> set[str]:
        """Return fields of requests that had one value in all calls."""
        return set().union(*(fields_of(rpc.request) for rpc in RPCS)) - self.changed

    def lines(self) -> Iterator[str]:
        """Yield the report's lines."""
        for rpc in RPCS:
            outcomes = Counter({outcome: n for (name, outcome), n in self.outcomes.items() if name == rpc.name})
            counts = ", ".join(f"{outcome} {n}" for outcome, n in outcomes.most_common())
            yield f"{rpc.name:<22} {outcomes.total():>6}  {counts}"
        num_fields = len(set().union(*(fields_of(rpc.request) for rpc in RPCS)))
        never = sorted(self.never_changed())
        yield f"fields changed: {num_fields - len(never)} of {num_fields}; never: {', '.join(never[:10]) or 'none'}"
        for what, (seconds, calls) in (("by the clock", self.longest_hold), ("of CPU time", self.longest_cpu_hold)):
            yield f"the loop was delayed for {seconds * 1000:.0f} ms {what} at most, by one of the calls {list(calls)}"
        slowest = ", ".join(f"{rpc} {seconds * 1000:.0f} ms" for rpc, seconds in sorted(self.latencies.items()))
        yield f"the witness waited at most: {slowest}"
        yield f"the witness did: {self.witnessed}"
        if self.usage:
            first, last = self.usage[0], self.usage[-1]
            grown = (last["resident bytes"] - first["resident bytes"]) / (1 << 20)
            yield f"the depot's memory grew by {grown:.1f} MiB, from {first['resident bytes'] / (1 << 20):.0f} MiB"
        for key, finding in self.findings.items():
            yield f"FOUND {self.seen[key]} times: {finding.what[:2000]} (calls {list(finding.calls)})"

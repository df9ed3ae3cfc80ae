"""Figures: measurements with their baselines, their spread over the rounds, and their goals."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound of the ratio to the baseline, or of the measurement itself without a baseline."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def met(self, value: float) -> bool:
        """Return whether the value meets the goal."""
        low = float("-inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= value <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measurement a round, with a baseline from the same rounds: a limit of the machine, or a peer."""

    what: str
    unit: str
    values: Sequence[float]
    baseline: str = ""
    baseline_values: Sequence[float] = ()
    goal: Goal | None = None

    @property
    def ratios(self) -> list[float]:
        """The ratio to the baseline in each round; empty without a baseline."""
        return [value / limit for value, limit in zip(self.values, self.baseline_values, strict=bool(self.baseline))]

    @property
    def verdict(self) -> str:
        """Whether the goal was met; empty without a goal."""
        if self.goal is None:
            return ""
        met = self.goal.met(statistics.median(self.ratios or self.values))
        return f"{self.goal} {'met' if met else 'MISSED'}"

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return a row: what, the median, the baseline's median, the ratio with its quartiles, the goal."""
        baseline = f"{_number(self.baseline_values)} {self.unit}, {self.baseline}" if self.baseline else ""
        ratios = self.ratios
        ratio = f"{statistics.median(ratios):.2f} ({_spread(ratios)})" if ratios else ""
        return self.what, f"{_number(self.values)} {self.unit}", baseline, ratio, self.verdict


HEADER = ("what", "kvdepot", "baseline, same run", "ratio (quartiles)", "goal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The figures of one run, and where it ran."""

    title: str
    figures: Sequence[Figure]
    commit: str = field(default_factory=lambda: _commit())
    machine: str = field(default_factory=lambda: _machine())
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def print(self) -> None:
        """Print a table."""
        table = Table(*HEADER, title=self.title, caption=f"{self.commit}, {self.machine}, {self.time}")
        for figure in self.figures:
            table.add_row(*figure.cells())
        Console(width=170).print(table)

    def write(self, name: str) -> None:
        """Write ``results/NAME.md`` to read and ``results/NAME.json`` with every round."""
        RESULTS.mkdir(exist_ok=True)
        rows = [HEADER, ("---",) * len(HEADER), *(figure.cells() for figure in self.figures)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        head = f"# {self.title}\n\nCommit {self.commit}, {self.machine}, {self.time}. Medians of the rounds.\n"
        (RESULTS / f"{name}.md").write_text("\n".join([head, *lines, ""]))
        (RESULTS / f"{name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")


def _number(values: Iterable[float]) -> str:
    median = statistics.median(values)
    return f"{median:,.0f}" if abs(median) >= 1_000 else f"{median:.3g}"


def _spread(ratios: list[float]) -> str:
    """Return the quartiles."""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return f"{low:.2f} to {high:.2f}"


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "no commit"


def _machine() -> str:
    """Return the number of processors, their model, and Python's version."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{len(models) or '?'} × {model}, Python {platform.python_version()}"

"""The report of a session: a table for a terminal, all figures as Markdown, and everything as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.gpu_session.findings import Findings, Outcome
from tools.gpu_session.steps import Step

TABLE_CHARACTERS = 10_000
"""Most characters of the printed table: remote terminals often show little more."""

Done = Sequence[tuple[Step, Findings]]


def table(done: Done, title: str) -> str:
    """Return a line for each step, the failures, and the figures. Those that missed their goal come first."""
    lines = [title, ""]
    for step, found in done:
        lines.append(f"{step.name:10} {found.outcome:14} {found.seconds:5.0f} s  {found.summary}".rstrip())
    failures = [failure for _, found in done for failure in found.failures]
    if failures:
        lines += ["", "failed:", *(f"  {failure}" for failure in failures)]
    figures = [figure for _, found in done for figure in found.figures]
    groups = {
        "goals missed": [figure for figure in figures if figure["is_met"] is False],
        "goals met": [figure for figure in figures if figure["is_met"]],
        "without a goal": [figure for figure in figures if figure["is_met"] is None],
    }
    for name, some in groups.items():
        if some:
            lines += ["", f"{name}:", *(f"  {_line(figure)}" for figure in some)]
    return _cut(lines)


def markdown(done: Done, title: str) -> str:
    """Return all figures, a table for each step."""
    lines = [f"# {title}", ""]
    for step, found in done:
        lines += [f"## {step.name}: {step.what}", "", f"{found.outcome}, {found.seconds:.0f} s. {found.summary}", ""]
        lines += [f"- {failure}" for failure in found.failures]
        if found.facts:
            lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.facts.items()), ""]
        if found.figures:
            lines += ["| what | measured | baseline, same run | ratio | goal |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(_cells(figure))} |" for figure in found.figures]
            lines.append("")
    return "\n".join(lines)


def write(done: Done, title: str, out: Path) -> None:
    """Write table.txt, figures.md and session.json after each step, so that a killed session leaves them."""
    (out / "table.txt").write_text(table(done, title) + "\n")
    (out / "figures.md").write_text(markdown(done, title))
    steps = [{"step": step.name, **asdict(found)} for step, found in done]
    (out / "session.json").write_text(json.dumps({"title": title, "steps": steps}, indent=1) + "\n")


def is_good(done: Done) -> bool:
    """Return whether steps ran and none failed or was killed. A missed goal is a figure, not a failure."""
    return not any(found.outcome.is_bad for _, found in done) and any(
        found.outcome is Outcome.PASSED for _, found in done
    )


def _cells(figure: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    baseline = (
        f"{_number(figure['baseline_median'])} {figure['unit']}, {figure['baseline']}" if figure["baseline"] else ""
    )
    ratio = f"{figure['ratio']:.2f}" if figure["ratio"] is not None else ""
    goal = f"{figure['goal']} {'met' if figure['is_met'] else 'MISSED'}" if figure["goal"] else ""
    return figure["what"], f"{_number(figure['median'])} {figure['unit']}", baseline, ratio, goal


def _line(figure: Mapping[str, Any]) -> str:
    """Return a short line for a figure; there are more than a hundred."""
    what, measured, _, ratio, goal = _cells(figure)
    baseline = f", {ratio} of {_number(figure['baseline_median'])}" if ratio else ""
    return f"{what}: {measured}{baseline}" + (f"  [{goal}]" if goal else "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _cut(lines: Sequence[str]) -> str:
    """Return as many lines as may be printed."""
    kept: list[str] = []
    num_characters = 0
    for number, line in enumerate(lines):
        num_characters += len(line) + 1
        if num_characters > TABLE_CHARACTERS:
            return "\n".join([*kept, f"… {len(lines) - number} more lines: see figures.md"])
        kept.append(line)
    return "\n".join(kept)

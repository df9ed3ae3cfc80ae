"""The findings of a step, read from the lines of JSON that it wrote, also if it was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tools.gpu_session.child import Ended
from tools.gpu_session.steps import Kind, Step

SANITIZER_EXIT_CODE = 86
"""Exit code of a process in which compute-sanitizer has found something."""

Line = Mapping[str, Any]


class Outcome(StrEnum):
    """How a step went."""

    PASSED = "passed"
    FAILED = "FAILED"
    OVER_LIMIT = "OVER ITS LIMIT"
    SKIPPED = "skipped"
    NO_TIME = "no time left"

    @property
    def is_bad(self) -> bool:
        """Whether an engineer must examine the step."""
        return self in (Outcome.FAILED, Outcome.OVER_LIMIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A step's outcome, a line about it (``summary``), and its details."""

    outcome: Outcome
    summary: str
    seconds: float = 0.0
    failures: Sequence[str] = ()
    facts: Line | None = None
    figures: Sequence[Line] = ()


def read_findings(step: Step, ended: Ended, results: Path) -> Findings:
    """Return the findings of a step that has ended. Missing results are a failure."""
    lines = _read_lines(results)
    if not lines:
        found = Findings(outcome=Outcome.FAILED, summary="it left no results")
    elif step.kind is Kind.TESTS:
        found = _of_tests(lines)
    elif step.kind is Kind.FIGURES:
        found = _of_figures(lines)
    else:
        found = Findings(outcome=Outcome.PASSED, summary=lines[0]["card"], facts=lines[0])
    found = replace(found, seconds=ended.seconds)
    if ended.is_over_limit:
        return _worse(found, Outcome.OVER_LIMIT, f"killed after {ended.seconds:.0f} s")
    if ended.exit_code == SANITIZER_EXIT_CODE and step.sanitizer:
        return _worse(found, Outcome.FAILED, f"{step.sanitizer} found something")
    if ended.exit_code != 0 and not found.outcome.is_bad:
        return _worse(found, Outcome.FAILED, f"exit code {ended.exit_code}")
    return found


def _worse(found: Findings, outcome: Outcome, why: str) -> Findings:
    return replace(found, outcome=outcome, summary=f"{why}; {found.summary}")


def _read_lines(results: Path) -> list[Line]:
    """Return the complete lines; a killed process may leave an incomplete last one."""
    if not results.exists():
        return []
    text = results.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _of_figures(lines: Sequence[Line]) -> Findings:
    missed = sum(figure["is_met"] is False for figure in lines)
    num_goals = sum(figure["is_met"] is not None for figure in lines)
    summary = f"{len(lines)} figures" + (f", {missed} of {num_goals} goals missed" if num_goals else "")
    return Findings(outcome=Outcome.PASSED, summary=summary, figures=lines)


def _of_tests(lines: Sequence[Line]) -> Findings:
    of = {name: [line for line in lines if line["outcome"] == name] for name in ("passed", "failed", "skipped")}
    parts = [f"{len(tests)} {name}" for name, tests in of.items() if tests]
    summary = ", ".join(parts)
    if of["skipped"]:
        summary += f": {of['skipped'][0]['message']}"
    failures = [f"{line['test']}: {line['message']}" for line in of["failed"]]
    if failures:
        return Findings(outcome=Outcome.FAILED, summary=summary, failures=failures)
    return Findings(outcome=Outcome.PASSED if of["passed"] else Outcome.SKIPPED, summary=summary)

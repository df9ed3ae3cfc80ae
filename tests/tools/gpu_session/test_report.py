"""The table that is printed last is short, and shows the problems first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Goal
from benchmarks.gpu.__main__ import facts_of
from tools.gpu_session import report
from tools.gpu_session.findings import Findings, Outcome
from tools.gpu_session.steps import Kind, Step


def figure(what: str, value: float, baseline: float = 10.0, goal: Goal | None = None) -> dict[str, Any]:
    """Return a figure as ``benchmarks.gpu`` writes it."""
    measured = Figure(
        what=what, unit="GB/s", values=[value], baseline="the link", baseline_values=[baseline], goal=goal
    )
    facts: dict[str, Any] = json.loads(json.dumps(facts_of(measured)))
    return facts


def step(name: str, kind: Kind = Kind.FIGURES) -> Step:
    return Step(name=name, what=f"what {name} does", kind=kind, limit_seconds=1, arguments=())


GOAL = Goal(at_least=0.95)
DONE = [
    (step("machine", Kind.FACTS), Findings(outcome=Outcome.PASSED, summary="a card", facts={"driver": "580"})),
    (
        step("blocks", Kind.TESTS),
        Findings(outcome=Outcome.FAILED, summary="1 failed", seconds=12.3, failures=["test_x: wrong bytes"]),
    ),
    (
        step("runs"),
        Findings(
            outcome=Outcome.PASSED,
            summary="3 figures",
            figures=[figure("fast", 9.9, goal=GOAL), figure("slow", 5.0, goal=GOAL), figure("plain", 7.0)],
        ),
    ),
]


def test_failures_come_before_figures_and_missed_goals_before_met_ones() -> None:
    text = report.table(DONE, "a session")
    lines = ["a session", "blocks", "test_x: wrong bytes", "slow:", "fast:", "plain:"]
    at = [text.index(line) for line in lines]
    assert at == sorted(at)
    assert "slow: 5 GB/s, 0.50 of 10  [≥ 0.95 MISSED]" in text
    assert "fast: 9.9 GB/s, 0.99 of 10  [≥ 0.95 met]" in text


def test_a_long_table_is_cut_and_says_where_the_rest_is() -> None:
    figures = [figure(f"figure number {number} with a long name", 1.0) for number in range(500)]
    text = report.table([(step("runs"), Findings(outcome=Outcome.PASSED, summary="", figures=figures))], "a session")
    assert len(text) <= report.TABLE_CHARACTERS + 50
    assert "more lines: see figures.md" in text.splitlines()[-1]


def test_all_figures_and_facts_are_in_the_files(tmp_path: Path) -> None:
    report.write(DONE, "a session", tmp_path)
    written = (tmp_path / "figures.md").read_text()
    for text in ("| driver | 580 |", "| slow | 5 GB/s | 10 GB/s, the link | 0.50 | ≥ 0.95 MISSED |", "test_x: wrong"):
        assert text in written
    steps = json.loads((tmp_path / "session.json").read_text())["steps"]
    assert [each["outcome"] for each in steps] == ["passed", "FAILED", "passed"]
    assert steps[2]["figures"][0]["values"] == [9.9]


def test_a_missed_goal_is_no_failure_and_a_failed_step_is() -> None:
    assert report.is_good([DONE[0], DONE[2]])
    assert not report.is_good(DONE)
    assert not report.is_good([(step("blocks"), Findings(outcome=Outcome.SKIPPED, summary="no card"))])

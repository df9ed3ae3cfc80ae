"""Settings of all tests: Hypothesis has no deadlines, and a run says in one line which tests it skipped, and why."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes depends on the machine
hypothesis.settings.load_profile("untimed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write a line with the reason of each skip and how often it occurred."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ").partition(": No module")[0]
        for report in terminalreporter.stats.get("skipped", ())
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        named = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        terminalreporter.write_line(f"skipped: {named}")

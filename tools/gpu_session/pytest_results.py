"""A pytest plugin that writes each test's outcome as a line of JSON at once: a run that is killed keeps its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--results``."""
    parser.addoption("--results", type=Path, required=True, help="the file that the outcomes are appended to")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to write."""
    config.pluginmanager.register(_Writer(config.getoption("--results")))


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that can't be imported as a failure, and one that skips itself as a skipped test."""
        if report.outcome != "passed":
            self._write(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: after its body, or after a set-up or clean-up that failed."""
        if report.when == "call" or report.outcome != "passed":
            self._write(report)

    def _write(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        with self._path.open("a") as lines:
            print(
                json.dumps({"test": report.nodeid, "outcome": report.outcome, "message": _message(report)}), file=lines
            )


def _message(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Return why a test failed or was skipped, in one line."""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message if crash is not None else report.longrepr or "")
    return text.splitlines()[0][:200] if text else ""

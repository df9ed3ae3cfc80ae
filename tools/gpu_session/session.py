"""A session: the steps one after the other, each within its limit and all within the time there is."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from tools.gpu_session.child import REPOSITORY, run_child
from tools.gpu_session.findings import SANITIZER_EXIT_CODE, Findings, Outcome, read_findings
from tools.gpu_session.machine import which
from tools.gpu_session.packages import PackagesUnavailable, install
from tools.gpu_session.steps import Kind, Step

SHORTEST_SECONDS = 10.0
"""A step that has less than this left is not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps to run. ``variables`` are added to the steps' environment; their PYTHONPATH goes first.

    All steps together take at most ``seconds``. ``is_dry`` makes the benchmarks quick, and lets steps do without
    compute-sanitizer and without the ``wheels``.
    """

    steps: Sequence[Step]
    seconds: float
    wheels: Path
    variables: Mapping[str, str]
    is_dry: bool


def run_steps(plan: Plan, log: IO[bytes], on_begin: Callable[[Step, float], None]) -> Iterator[tuple[Step, Findings]]:
    """Run each step and yield its findings at its end, also after steps that failed.

    ``log`` receives all that the steps print. ``on_begin`` is called with a step and the seconds that it has.
    """
    end = time.monotonic() + plan.seconds
    with tempfile.TemporaryDirectory(prefix="kvdepot-gpu-session-", ignore_cleanup_errors=True) as folder:
        runner = _Runner(plan, log, Path(folder))
        for step in plan.steps:
            limit_seconds = min(step.limit_seconds, end - time.monotonic())
            if limit_seconds < min(SHORTEST_SECONDS, step.limit_seconds):
                yield step, Findings(outcome=Outcome.NO_TIME, summary="")
                continue
            on_begin(step, limit_seconds)
            yield step, runner.run(step, limit_seconds)


class _Runner:
    """Makes each step's command and reads its findings. ``folder`` is for temporary files."""

    def __init__(self, plan: Plan, log: IO[bytes], folder: Path) -> None:
        self._plan = plan
        self._log = log
        self._folder = folder
        self._environment = self._make_environment()

    def run(self, step: Step, limit_seconds: float) -> Findings:
        """Run a step, or say why it can't be run."""
        self._write(f"\n==== {step.name}: {step.what}")
        results = self._folder / f"results-{step.name}"
        command, remark = self._command(step, results)
        if not command:
            return Findings(outcome=Outcome.SKIPPED, summary=remark)
        self._write(f"$ {' '.join(command)}")
        ended = run_child(command, self._environment, self._log, limit_seconds)
        found = read_findings(step, ended, results)
        return replace(found, summary=f"{found.summary} ({remark})") if remark else found

    def _command(self, step: Step, results: Path) -> tuple[list[str], str]:
        """Return the command and a remark; without a command, the remark says why."""
        command = [sys.executable, *step.arguments]
        if step.kind is Kind.TESTS:
            command += ["-p", "tools.gpu_session.pytest_results"]
            if step.test_seconds and find_spec("pytest_timeout") is not None:
                command += [f"--timeout={step.test_seconds:g}"]
        if step.kind is Kind.FIGURES and self._plan.is_dry:
            command += ["--quick"]
        command += ["--results", str(results)]
        if not step.sanitizer:
            return command, ""
        sanitizer = which("compute-sanitizer")
        if sanitizer is None:
            return (command, "without compute-sanitizer") if self._plan.is_dry else ([], "no compute-sanitizer here")
        flags = ["--tool", step.sanitizer, "--error-exitcode", str(SANITIZER_EXIT_CODE)]
        return [sanitizer, *flags, *command], ""

    def _make_environment(self) -> dict[str, str]:
        environment = {**os.environ, **self._plan.variables}
        paths = [str(REPOSITORY), str(REPOSITORY / "clients" / "python"), *self._packages()]
        if environment.get("PYTHONPATH"):
            paths.append(environment["PYTHONPATH"])
        return environment | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "CUPY_CACHE_DIR": str(self._folder / "cupy"),
            "HF_HUB_OFFLINE": "1",
        }

    def _packages(self) -> list[str]:
        """Install the wheels, if any; return the folder that they are in."""
        wheels = sorted(self._plan.wheels.glob("*.whl"))
        if self._plan.is_dry or not wheels:
            self._write("packages: those of this Python")
            return []
        try:
            install(wheels, self._folder / "packages")
        except PackagesUnavailable as error:
            self._write(f"packages: the wheels can't be installed: {error}")
            return []
        self._write(f"packages: {len(wheels)} wheels from {self._plan.wheels}")
        return [str(self._folder / "packages")]

    def _write(self, line: str) -> None:
        self._log.write(f"{line}\n".encode())
        self._log.flush()

"""A session goes on after any end of a step, ends in time, and leaves its findings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.gpu_session import session
from tools.gpu_session.child import REPOSITORY
from tools.gpu_session.findings import Findings, Outcome
from tools.gpu_session.session import Plan, run_steps
from tools.gpu_session.steps import Kind, Step

WRITE = "import json, pathlib, sys; results = pathlib.Path(sys.argv[sys.argv.index('--results') + 1])\n"
FACTS = WRITE + "results.write_text(json.dumps({'card': 'a card'}) + '\\n')\n"
FIGURE = {"what": "f", "is_met": None, "goal": None}


def step(name: str, script: str, *, kind: Kind = Kind.FACTS, limit_seconds: float = 20.0, sanitizer: str = "") -> Step:
    return Step(
        name=name,
        what=f"what {name} does",
        kind=kind,
        limit_seconds=limit_seconds,
        arguments=("-c", script),
        sanitizer=sanitizer,
    )


def run(
    *steps: Step, seconds: float = 60.0, wheels: Path = Path("nowhere"), is_dry: bool = False
) -> tuple[list[Findings], str]:
    """Return the findings of some steps, and the log."""
    plan = Plan(steps=steps, seconds=seconds, wheels=wheels, variables={"SEEN": "yes"}, is_dry=is_dry)
    with tempfile.TemporaryFile() as log:
        found = [findings for _, findings in run_steps(plan, log, lambda step, limit_seconds: None)]
        log.seek(0)
        return found, log.read().decode()


def outcomes(found: Sequence[Findings]) -> list[Outcome]:
    return [each.outcome for each in found]


def test_a_step_that_fails_does_not_keep_the_next_from_running() -> None:
    found, log = run(step("bad", "raise SystemExit('no such card')"), step("good", FACTS))
    assert outcomes(found) == [Outcome.FAILED, Outcome.PASSED]
    assert found[1].summary == "a card"
    assert "no such card" in log


def test_results_of_a_step_that_exits_with_an_error_are_kept_and_it_fails() -> None:
    (found,), _ = run(step("half", FACTS + "raise SystemExit(3)"))
    assert (found.outcome, found.summary, found.facts) == (Outcome.FAILED, "exit code 3; a card", {"card": "a card"})


def test_a_step_that_leaves_no_results_fails() -> None:
    (found,), _ = run(step("silent", "pass"))
    assert (found.outcome, found.summary) == (Outcome.FAILED, "it left no results")


def test_a_step_over_its_limit_is_killed_with_its_children_and_keeps_whole_lines(tmp_path: Path) -> None:
    script = (
        WRITE
        + "import subprocess, time; child = subprocess.Popen(['sleep', '60'], process_group=0)\n"
        + f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        + f"results.write_text(json.dumps({FIGURE!r}) + '\\n' + '{{\"what')\n"
        + "def hang_here(): time.sleep(60)\n"
        + "hang_here()\n"
    )
    begin = time.monotonic()
    found, log = run(step("hangs", script, kind=Kind.FIGURES, limit_seconds=1.0), step("next", FACTS))
    assert time.monotonic() - begin < 15
    assert outcomes(found) == [Outcome.OVER_LIMIT, Outcome.PASSED]
    assert found[0].figures == [FIGURE]
    assert "killed after" in found[0].summary and "1 figures" in found[0].summary
    assert "hang_here" in log, "the log does not say where it hung"
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_steps_for_which_no_time_is_left_are_named() -> None:
    slow = step("slow", FACTS + "import time; time.sleep(1)", limit_seconds=5.0)
    found, _ = run(slow, step("late", FACTS), seconds=5.5)
    assert outcomes(found) == [Outcome.PASSED, Outcome.NO_TIME]


def test_a_step_gets_no_more_time_than_is_left() -> None:
    begin = time.monotonic()
    found, _ = run(step("hangs", "import time; time.sleep(60)", limit_seconds=11.0), seconds=10.5)
    assert time.monotonic() - begin < 16
    assert outcomes(found) == [Outcome.OVER_LIMIT]


def test_steps_see_the_variables_of_the_plan_and_our_packages() -> None:
    script = "import os, kernels, kvdepot; assert os.environ['SEEN'] == 'yes'\n" + FACTS
    assert outcomes(run(step("sees", script))[0]) == [Outcome.PASSED]


def wheel(folder: Path, name: str) -> Path:
    """Return a wheel with one module."""
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.dist-info/RECORD", "")
    return path


def test_steps_can_import_what_the_wheels_bring(tmp_path: Path) -> None:
    wheel(tmp_path, "carried_to_the_card")
    found, log = run(step("imports", "import carried_to_the_card\n" + FACTS), wheels=tmp_path)
    assert outcomes(found) == [Outcome.PASSED], log
    assert f"1 wheels from {tmp_path}" in log


def test_wheels_that_cannot_be_installed_are_said_and_the_steps_run(tmp_path: Path) -> None:
    wheel(tmp_path, "ours").rename(tmp_path / "ours-1-cp39-cp39-manylinux2014_x86_64.whl")
    found, log = run(step("runs", FACTS), wheels=tmp_path)
    assert outcomes(found) == [Outcome.PASSED]
    assert "can't be installed" in log and "not a supported wheel" in log


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compute-sanitizer that finds something if the program says so."""
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "tool $2"\ncode=$4\nshift 4\n"$@" && exit 0\nexit "$code"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return program


def test_what_the_sanitizer_finds_fails_the_step(sanitizer: Path) -> None:
    bad = step("bad", FACTS + "raise SystemExit(1)", sanitizer="memcheck")
    found, log = run(bad, step("good", FACTS, sanitizer="racecheck"))
    assert [(each.outcome, each.summary) for each in found] == [
        (Outcome.FAILED, "memcheck found something; a card"),
        (Outcome.PASSED, "a card"),
    ]
    assert "tool memcheck" in log and "tool racecheck" in log


def test_without_a_sanitizer_its_steps_are_skipped_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "which", lambda program: None)
    steps = [step("checked", FACTS, sanitizer="memcheck")]
    (real,), _ = run(*steps)
    (dry,), _ = run(*steps, is_dry=True)
    assert (real.outcome, real.summary) == (Outcome.SKIPPED, "no compute-sanitizer here")
    assert (dry.outcome, dry.summary) == (Outcome.PASSED, "a card (without compute-sanitizer)")


def test_a_session_that_is_stopped_leaves_no_process_and_all_its_findings(tmp_path: Path) -> None:
    """Of the real steps on the simulated card, the first has ended and the second runs."""
    command = [sys.executable, "-m", "tools.gpu_session", "--dry-run", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--steps", "machine", "kernels"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("kernels:"):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "machine    passed" in rest and "Traceback" not in rest
    steps = json.loads((tmp_path / "session.json").read_text())["steps"]
    assert [each["step"] for each in steps] == ["machine"]
    assert "(stopped)" in (tmp_path / "table.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures.md",
        "session.json",
        "session.log",
        "table.txt",
    ]

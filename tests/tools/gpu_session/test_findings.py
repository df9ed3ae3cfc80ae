"""The lines that a step wrote are read, and the worst one decides its outcome."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.gpu_session.child import REPOSITORY, Ended
from tools.gpu_session.findings import Findings, Outcome, read_findings
from tools.gpu_session.steps import Kind, Step

TESTS = Step(name="tests", what="", kind=Kind.TESTS, limit_seconds=1, arguments=())
PASSES = "def test_passes(): pass\n"
FAILS = "def test_fails():\n    assert 1 + 1 == 3, 'arithmetic'\n"
SKIPS = "import pytest\ndef test_skips(): pytest.skip('there is no card')\n"
BROKEN_SETUP = "import pytest\n@pytest.fixture\ndef card(): raise OSError('gone')\ndef test_set_up(card): pass\n"
HANGS = "import os\ndef test_hangs(): os.kill(os.getpid(), 9)\n"


def findings_of(folder: Path, source: str) -> Findings:
    """Return the findings of pytest with our plugin."""
    test, results = folder / "test_it.py", folder / "results"
    test.write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "tools.gpu_session.pytest_results", "--results", str(results)]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", str(folder), str(test)],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return read_findings(TESTS, Ended(exit_code=done.returncode, seconds=1.5, is_over_limit=False), results)


def test_tests_that_pass_are_counted(tmp_path: Path) -> None:
    found = findings_of(tmp_path, PASSES + SKIPS)
    assert (found.outcome, found.summary, found.seconds) == (
        Outcome.PASSED,
        "1 passed, 1 skipped: there is no card",
        1.5,
    )


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        (FAILS, "test_it.py::test_fails: AssertionError: arithmetic"),
        (BROKEN_SETUP, "test_it.py::test_set_up: OSError: gone"),
        ("import no_such_package\n", "test_it.py: "),
    ],
    ids=["body", "set-up", "import"],
)
def test_what_fails_is_named_with_its_reason(tmp_path: Path, source: str, failure: str) -> None:
    found = findings_of(tmp_path, source)
    assert found.outcome is Outcome.FAILED
    (line,) = found.failures
    assert line.startswith(failure)
    assert "\n" not in line


def test_tests_that_all_skip_are_a_skipped_step_with_the_reason(tmp_path: Path) -> None:
    found = findings_of(tmp_path, SKIPS)
    assert (found.outcome, found.summary) == (Outcome.SKIPPED, "1 skipped: there is no card")


def test_a_file_that_skips_itself_gives_the_reason(tmp_path: Path) -> None:
    found = findings_of(tmp_path, "import pytest\npytest.skip('no server here', allow_module_level=True)\n")
    assert (found.outcome, found.summary) == (Outcome.FAILED, "exit code 5; 1 skipped: no server here")


def test_tests_before_a_crash_are_kept(tmp_path: Path) -> None:
    found = findings_of(tmp_path, PASSES + HANGS)
    assert (found.outcome, found.summary) == (Outcome.FAILED, "exit code -9; 1 passed")

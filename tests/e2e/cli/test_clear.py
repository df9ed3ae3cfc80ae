"""`clear` asks first, says what it removed and kept, and removes nothing by accident."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.cli.attached import CLIENT, Attached, attached


@pytest.fixture(scope="module")
def running() -> Iterator[Attached]:
    with attached() as found:
        yield found


@pytest.fixture
def depot(running: Attached) -> Attached:
    """A depot with three chunks."""
    running.client.clear_cache(force=True)
    running.store(3)
    return running


def num_chunks(depot: Attached) -> int:
    return int(depot.client.get_status().tiers[0].num_chunks)


def in_terminal(depot: Attached, answer: str) -> tuple[int, str]:
    """Run `clear` in a terminal, type the answer, and return the exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kvdepot", "clear", "--address", depot.address, "--model", "llama"],
        env={**os.environ, "PYTHONPATH": str(CLIENT)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        try:
            while piece := os.read(ours, 4096):
                shown += piece
        except OSError:  # the other end of the terminal is closed
            pass
        os.close(ours)
    return process.returncode, shown.decode()


def test_without_a_terminal_it_needs_yes(depot: Attached) -> None:
    result = depot.run("clear", "--model", "llama", "--salt", "x", "--force")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: this would remove the chunks of model llama with the salt x, also leased and pinned ones, and there is"
        " no terminal to ask at\nhint: give --yes\n"
    )
    assert num_chunks(depot) == 3


def test_in_a_terminal_it_asks_and_no_is_no(depot: Attached) -> None:
    exit_code, shown = in_terminal(depot, "n\n")
    assert (exit_code, num_chunks(depot)) == (1, 3)
    assert f"Remove the chunks of model llama from {depot.address}?" in shown
    assert "nothing was removed" in shown
    exit_code, shown = in_terminal(depot, "y\n")
    assert (exit_code, num_chunks(depot)) == (0, 0)
    assert "removed 3 chunks, 12 KiB" in shown


def test_what_is_kept_is_said_and_force_removes_it_too(depot: Attached) -> None:
    depot.attachment.lookup("s", range(32))
    result = depot.run("clear", "--yes")
    assert result.exit_code == 0
    assert result.stdout == (
        "removed 1 chunk, 4 KiB\nkept 2 chunks, leased, pinned or being retrieved; --force removes what is kept\n"
    )
    assert depot.run("clear", "--yes", "--force").stdout == "removed 2 chunks, 8 KiB\nended 1 lease\n"


def test_filters_are_kept_and_json_has_the_counts(depot: Attached) -> None:
    for filters in (("--model", "qwen"), ("--salt", "x"), ("--tenant", "red")):
        cleared = json.loads(depot.run("clear", "--yes", "--json", *filters).stdout)
        assert cleared["num_cleared_chunks"] == "0"
    assert json.loads(depot.run("clear", "--yes", "--json", "--salt", "").stdout)["num_cleared_chunks"] == "3"


def test_a_model_without_chunks_gets_the_one_that_is_meant(depot: Attached) -> None:
    assert "no chunk is of model lama: did you mean llama?" in depot.run("clear", "--yes", "--model", "lama").stdout
    assert "attached are llama" in depot.run("clear", "--yes", "--model", "\x1b[31mx").stdout

"""`kvdepot l1`: for people, for scripts, and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvdepot.cli.app import app
from tests.fakes.l1_file import SLOT_BYTES, filled

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "l1"


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["l1", *words])


def lines(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.output.splitlines()]


def test_show_lists_facts_and_chunks(path: Path) -> None:
    filled(path, [("red", "llama"), ("red", "llama"), ("", "\x1b[31mbad")]).close()
    shown = call("show", str(path))
    assert shown.exit_code == 0
    assert {"state ready", "used by no process", "damaged records 0"} <= set(lines(shown))
    assert "chunks 3, 24 KiB of 1 MiB" in lines(shown)
    assert "red llama – 256 2 16 KiB" in lines(shown)
    assert r"– \x1b[31mbad – 256 1 8 KiB" in lines(shown)


def test_show_as_json_has_the_same(path: Path) -> None:
    memory = filled(path, [("red", "llama")])
    shown = json.loads(call("show", str(path), "--json").output)
    assert (shown["state"], shown["is_in_use"], shown["used_by_pid"]) == ("ready", True, os.getpid())
    assert shown["holdings"] == [
        {
            "tenant": "red",
            "model_name": "llama",
            "model_revision": "",
            "chunk_size": 256,
            "num_chunks": 1,
            "num_bytes": SLOT_BYTES,
        }
    ]
    memory.close()


def test_a_file_with_a_damaged_header_is_shown_and_can_be_wiped(path: Path) -> None:
    filled(path, []).close()
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    assert "state its header is damaged, or of another format" in lines(call("show", str(path)))
    assert json.loads(call("show", str(path), "--json").output)["format"] is None
    assert call("wipe", str(path), "--yes").exit_code == 0
    assert not path.exists()


def test_what_can_not_be_shown_or_wiped_is_one_line(path: Path) -> None:
    for words in (("show", str(path)), ("wipe", str(path), "--yes")):
        refused = call(*words)
        assert (refused.exit_code, refused.stderr) == (1, f"error: {path}: No such file or directory\n")


def test_wipe_needs_yes_without_a_terminal(path: Path) -> None:
    filled(path, [("", "a")]).close()
    refused = call("wipe", str(path))
    assert refused.exit_code == 2
    assert "with 1 chunk, and there is no terminal to ask at\nhint: give --yes" in refused.stderr
    assert path.exists()


def test_wipe_refuses_a_file_in_use_before_it_asks(path: Path) -> None:
    memory = filled(path, [("", "a")])
    refused = call("wipe", str(path))
    assert (refused.exit_code, refused.stderr) == (1, f"error: {path}: process {os.getpid()} uses it\n")
    memory.close()
    wiped = call("wipe", str(path), "--yes")
    assert (wiped.exit_code, path.exists()) == (0, False)
    assert wiped.output.startswith(f"wiped and removed {path}, ")


def in_terminal(path: Path, answer: str) -> tuple[int, str]:
    """Run `l1 wipe` in a terminal, type the answer, and return the exit code and what the terminal shows."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    words = [sys.executable, "-m", "kvdepot", "l1", "wipe", str(path)]
    variables = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}", "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=variables)
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # the other end of the terminal is closed
            break
        if not read:
            break
        shown += read
    os.close(ours)
    return process.wait(10), shown.decode()


def test_in_a_terminal_wipe_asks_and_no_is_no(path: Path) -> None:
    filled(path, [("", "a")]).close()
    exit_code, shown = in_terminal(path, "n\n")
    assert (exit_code, path.exists()) == (1, True)
    assert f"Wipe {path}, " in shown
    assert "error: nothing was wiped" in shown
    exit_code, shown = in_terminal(path, "y\n")
    assert (exit_code, path.exists()) == (0, False)
    assert "wiping" in shown
    assert f"wiped and removed {path}" in shown

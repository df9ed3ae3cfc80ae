"""A child never outlives its block, and says why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvdepot.cli.processes import ChildFailed, child, server_process

REPOSITORY = Path(__file__).parents[3]


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_lines_come_as_they_are_written_and_the_child_ends_with_the_block() -> None:
    with child("sleeper", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)") as process:
        pid = int(next(process.lines()))
        assert is_running(pid)
    assert not is_running(pid)


def test_a_failure_has_the_exit_code_and_the_last_lines() -> None:
    code = "import sys; print('one'); sys.exit('two')"
    with child("a test", "-c", code) as process, pytest.raises(ChildFailed) as raised:
        list(process.lines())
    assert str(raised.value) == "a test ended with exit code 1\ntwo"


def test_a_child_that_takes_too_long_is_killed_and_that_is_said() -> None:
    killed = pytest.raises(ChildFailed, match=r"^a test took longer than 0\.2 s and was killed")
    with child("a test", "-c", "import time; time.sleep(60)") as process, process.limit(0.2), killed:
        list(process.lines())


def test_variables_of_the_users_depot_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVDEPOT_CHUNK_SIZE", "7")
    code = "import os; print(sorted(name for name in os.environ if name.startswith('KVDEPOT')), os.environ['OURS'])"
    with child("a test", "-c", code, variables={"OURS": "yes"}) as process:
        assert list(process.lines()) == ["[] yes"]


def test_packages_on_the_users_path_can_be_imported_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here" / "__init__.py").write_text("print('imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with child("a test", "-c", "import only_here, service, kvdepot") as process:
        assert list(process.lines()) == ["imported"]


def test_a_depot_that_does_not_start_says_why() -> None:
    with pytest.raises(ChildFailed, match="chunk_size"), server_process("--chunk-size", "0"):
        pass


def test_a_terminated_command_ends_its_depot() -> None:
    code = """
import os, sys
from kvdepot.cli.processes import exit_on_terminate, server_process
with exit_on_terminate(), server_process("--l1-size", "1MiB") as address:
    print(address, flush=True)
    while True:
        input()
"""
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with command:
        assert command.stdout is not None
        socket = Path(command.stdout.readline().strip().removeprefix("unix:"))
        (depot,) = (
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and os.fsencode(socket) in _command_line(entry)
        )
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 128 + signal.SIGTERM
    assert not is_running(depot)
    assert not socket.parent.exists()


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "stopped\n"), (signal.SIGINT, 130, "")])
def test_a_signal_ends_what_asyncio_runs_without_a_traceback(number: signal.Signals, code: int, said: str) -> None:
    program = """
import asyncio, os, sys
from kvdepot.cli.processes import exit_on_terminate

async def work():
    try:
        while True:
            print("works", flush=True)
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        print("cleaned up", flush=True)

try:
    with exit_on_terminate():
        asyncio.run(work())
except KeyboardInterrupt:
    sys.exit(130)
"""
    command = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.readline() == "works\n"
        command.send_signal(number)
        assert command.stdout.read().splitlines()[-1] == "cleaned up"
        assert command.stderr.read() == said
        assert command.wait(30) == code


def test_terminate_ends_a_process_that_ignores_the_interrupt_key() -> None:
    program = """
import signal, time
from kvdepot.cli.processes import exit_on_terminate
signal.signal(signal.SIGINT, signal.SIG_IGN)
with exit_on_terminate():
    print("works", flush=True)
    time.sleep(60)
"""
    command = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == "works\n"
        command.terminate()
        assert command.wait(30) == 143


def _command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""

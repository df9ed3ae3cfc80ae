"""One step as a process: nothing of it outlives its limit, and where it hung can be read in the log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

DUMP_SECONDS = 2.0
"""Time for a process over its limit to write the stacks of its threads, as PYTHONFAULTHANDLER makes it do."""

KILL_SECONDS = 5.0
"""Time for killed processes to end. A process that hangs in a driver stays."""

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of a process. ``is_over_limit`` says that it was killed."""

    exit_code: int
    seconds: float
    is_over_limit: bool


def run_child(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], limit_seconds: float) -> Ended:
    """Run a command from the repository's root, in a session of its own. Its output goes to ``log``.

    All processes of that session are killed when the command ends, when it passes its limit, and when this is left
    by an exception.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    is_over_limit = False
    try:
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            is_over_limit = True
            process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(DUMP_SECONDS)
    finally:
        _kill_session(process)
    exit_code = -signal.SIGKILL if process.returncode is None else process.returncode
    return Ended(exit_code=exit_code, seconds=time.monotonic() - begin, is_over_limit=is_over_limit)


def _kill_session(leader: subprocess.Popen[bytes]) -> None:
    """Kill by session and not by group: a depot that a test starts has a process group of its own."""
    end = time.monotonic() + KILL_SECONDS
    while (members := _members(leader.pid)) and time.monotonic() < end:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        leader.poll()  # else it would stay as a zombie
        time.sleep(0.01)
    with suppress(subprocess.TimeoutExpired):
        leader.wait(KILL_SECONDS)


def _members(session_id: int) -> list[int]:
    """Return the processes of a session that have not ended; see proc_pid_stat(5)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            if int(session) == session_id and state != "Z":
                found.append(int(path.parent.name))
    return found

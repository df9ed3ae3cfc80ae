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
"""For a process that passed its limit to write where each of its threads is; PYTHONFAULTHANDLER makes it do so."""

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended. ``is_over_limit`` says that it was killed."""

    exit_code: int
    seconds: float
    is_over_limit: bool


def run_child(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], limit_seconds: float) -> Ended:
    """Runs a command from the repository's root, in a process group of its own. Its output goes to ``log``.

    All processes of the group are killed when the command ends, when it passes its limit, and when this is left by
    an exception.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        process_group=0,
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
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Ended(exit_code=process.returncode, seconds=time.monotonic() - begin, is_over_limit=is_over_limit)

"""Processes of the peer's environment: they take commands, and none is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

REPOSITORY = Path(__file__).parents[2]
PYTHON = REPOSITORY / ".venv-peer" / "bin" / "python"
ANSWER_SECONDS = 180.0
END_SECONDS = 10.0


class PeerFailed(Exception):
    """A process of the peer failed; the message holds the last lines that it wrote."""


class Process:
    """A Python process of the peer's environment. Its standard error is kept for the report of a failure."""

    def __init__(
        self, name: str, *arguments: str, variables: Mapping[str, str], answers: bool, python: Path = PYTHON
    ) -> None:
        self._name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("KVDEPOT_", "LMCACHE_"))
        }
        environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
        self._process = subprocess.Popen(
            [str(python), *arguments],
            cwd=REPOSITORY,
            env={**environment, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else self._errors,
            stderr=self._errors,
            process_group=0,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def write(self, line: str) -> None:
        """Write a line to its standard input.

        Raises: PeerFailed, if it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("it is gone") from None

    def line(self, limit_seconds: float) -> str:
        """Return the next line of its standard output.

        Raises: PeerFailed, if it ended or there was none in time.
        """
        assert self._process.stdout is not None
        with _killed_after(self._process, limit_seconds):
            line = self._process.stdout.readline()
        if not line:
            raise self.failure(f"it ended, or said nothing for {limit_seconds:g} s")
        return line

    def until_listening(self, port: int, limit_seconds: float) -> None:
        """Wait until it listens on a port.

        Raises: PeerFailed, if it ended, or does not listen in time.
        """
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self.failure(f"it ended with exit code {self._process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise self.failure(f"it does not listen after {limit_seconds:g} s")

    def failure(self, why: str) -> PeerFailed:
        """Return an error with the reason and the end of the process's standard error."""
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-15:]
        return PeerFailed("\n".join([f"{self._name}: {why}", *tail]))

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


class Driver:
    """The driver's process: one command, one answer."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Send a command and return its answer.

        Raises: PeerFailed, if the command failed, the answer is late, or the process has ended.
        """
        self._process.write(json.dumps({"do": do, **arguments}))
        answer: dict[str, Any] = json.loads(self._process.line(ANSWER_SECONDS))
        if "error" in answer:
            raise self._process.failure(answer["error"])
        return answer


@contextmanager
def _killed_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

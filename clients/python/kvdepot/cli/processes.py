"""Child processes of a command: started, read line by line, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import IO

from kvdepot.cli.server_folder import PACKAGE, server_folder

ANY_PORT = ("--prometheus-port", "0")  # the default port is for the depot that the user runs
EMPTY: Mapping[str, str] = MappingProxyType({})

_END_SECONDS = 15.0
_LAST_LINES = 15


class ChildFailed(Exception):
    """A child process ended with an error; the message has the last lines it wrote."""


class Child:
    """A Python process. Its standard output is read as lines; its standard error is shown if it fails.

    It runs in a process group of its own: Ctrl-C reaches this process alone, which then ends its children in order.
    """

    def __init__(self, name: str, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._drain: threading.Thread | None = None
        self._limit_seconds: float | None = None
        # Settings in the environment are for the depot that the user runs, not for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
        folder = server_folder() or Path.cwd()
        # The child also needs the user's own path, which may lead to packages that are not installed.
        paths = (str(folder), str(PACKAGE.parent), environment.get("PYTHONPATH", ""))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment.update(variables)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,
        )

    def __repr__(self) -> str:
        return f"<Child {self.name}, pid {self._process.pid}, exit code {self._process.poll()}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def lines(self) -> Iterator[str]:
        """Yield the lines of its standard output, until it ends.

        Raises: ChildFailed.
        """
        for line in self._output:
            yield line.decode(errors="replace").rstrip("\n")
        if self._process.wait() != 0:
            raise self.failure()

    def drain(self) -> None:
        """Read and discard its output from here on, in a thread: a full pipe would block the child."""
        self._drain = threading.Thread(target=deque, args=(self._output, 0), daemon=True)
        self._drain.start()

    def failure(self) -> ChildFailed:
        """Wait for its end, and return an error that says why it ended."""
        if self._limit_seconds is not None:
            why = f"{self.name} took longer than {self._limit_seconds:g} s and was killed"
        else:
            why = f"{self.name} ended with exit code {self._process.wait()}"
        self._errors.seek(0)
        tail = self._errors.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        return ChildFailed("\n".join([why, *tail]))

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Kill it if the block takes longer."""

        def kill() -> None:
            self._limit_seconds = seconds
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def kill(self) -> None:
        """Kill it, as a crash would. It has ended when this returns."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._drain is not None:
            self._drain.join()
        self._output.close()
        self._errors.close()


@contextmanager
def child(name: str, *arguments: str, variables: Mapping[str, str] = EMPTY) -> Iterator[Child]:
    """Run `python ARGUMENTS` for the duration of the block, where it can import the server."""
    process = Child(name, arguments, variables)
    try:
        yield process
    finally:
        process.end()


@contextmanager
def server_child(
    *flags: str, name: str = "the depot", start_seconds: float = 60.0
) -> Iterator[tuple[Child, list[str]]]:
    """Run a depot for the duration of the block, and yield its process and its addresses.

    The first one is a unix socket of its own. The others are of each `--listen` among the flags, in this order.

    Raises: ChildFailed.
    """
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:
        listen = f"unix:{folder}/kvdepot.sock"
        with child(name, "-m", "kvdepot", "serve", "--listen", listen, *ANY_PORT, *flags) as server:
            with server.limit(start_seconds):
                ready = next((line for line in server.lines() if listen in line), None)
                if ready is None:
                    raise server.failure()
            server.drain()
            yield server, ready[ready.index(listen) :].split(", ")


@contextmanager
def server_addresses(*flags: str, start_seconds: float = 60.0) -> Iterator[list[str]]:
    """Run a depot for the duration of the block, and yield its addresses as `server_child` does.

    Raises: ChildFailed.
    """
    with server_child(*flags, start_seconds=start_seconds) as (_, addresses):
        yield addresses


@contextmanager
def server_process(*flags: str, start_seconds: float = 60.0) -> Iterator[str]:
    """Run a depot for the duration of the block, on a unix socket of its own, and yield its address.

    Raises: ChildFailed.
    """
    with server_addresses(*flags, start_seconds=start_seconds) as addresses:
        yield addresses[0]


@contextmanager
def exit_on_terminate() -> Iterator[None]:
    """Let SIGTERM unwind this process within the block, as Ctrl-C does, so that its children end with it.

    What asyncio runs is cancelled. Then the process says that it was stopped, and ends with 128 + SIGTERM.
    """
    is_terminated = False

    def unwind(number: int, frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        interrupt = signal.getsignal(signal.SIGINT)  # that of asyncio while it runs
        if not callable(interrupt):
            interrupt = signal.default_int_handler
        interrupt(signal.SIGINT, frame)

    previous = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except (Exception, KeyboardInterrupt):  # children of the same process group may have ended first
        if not is_terminated:
            raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if is_terminated:
        print("stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

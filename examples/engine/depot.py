"""A depot as a process, which can be killed and started again. Its L1 is a file, which outlives the process."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from kvdepot.cli.processes import ANY_PORT, Child, child

L1_SIZE = "64MiB"
_START_SECONDS = 60.0


class Depot:
    """The depot at `address`. It ends with the stack."""

    def __init__(self, folder: Path, chunk_size: int, until_end: ExitStack) -> None:
        self.address = f"unix:{folder}/kvdepot.sock"
        self._flags = ("--l1-file", f"{folder}/l1", "--l1-size", L1_SIZE, "--chunk-size", str(chunk_size))
        self._until_end = until_end.enter_context(ExitStack())  # of its own: it ends after the engines
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """The id of the process that was started last."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start a process, and wait until it serves.

        Raises: ChildFailed.
        """
        arguments = ("-m", "kvdepot", "serve", "--listen", self.address, *ANY_PORT, *self._flags)
        self._child = server = self._until_end.enter_context(child("the depot", *arguments))
        with server.limit(_START_SECONDS):
            if not any(self.address in line for line in server.lines()):
                raise server.failure()
        server.drain()

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        assert self._child is not None
        self._child.kill()

"""The engine of the GPU tests, seen from outside: a process that takes commands and may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from kernels.geometry import CudaIpc, Region

OWNER = Path(__file__).with_name("owner.py")
CLIENTS = Path(__file__).parents[2] / "clients" / "python"


def python_path() -> str:
    """Return this process's path, with our client first."""
    return os.pathsep.join([str(CLIENTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def end_process(process: subprocess.Popen[str]) -> None:
    """Kill a process, and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # an order may be left that was not sent
                pipe.close()


class EngineProcess:
    """Runs `owner.py` with ``variables`` in its environment.

    Its tensors are regions; a region's number is the position of its tensor.
    """

    def __init__(self, **variables: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(OWNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": python_path(), **variables},
        )
        self._uuid = self.ask("uuid")

    def order(self, do: str, **arguments: Any) -> None:
        """Give an order, and do not wait for its answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for the answer to the oldest order without one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order, and wait for its answer."""
        self.order(do, **arguments)
        return self.answer()

    def region(self, do: str, **arguments: Any) -> Region:
        """Make the engine allocate a tensor; return it as a region that the depot maps."""
        answer = self.ask(do, **arguments)
        handle = CudaIpc(bytes.fromhex(answer["handle"]), answer["offset_bytes"], self._uuid)
        return Region(answer["size_bytes"], handle)

    def kill(self) -> None:
        """Kill the process, as the kernel does when memory is short. It is gone when this returns."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process, and its pipes."""
        end_process(self._process)

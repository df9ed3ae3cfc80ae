"""The engine of the GPU tests as seen from outside: a process that is told what to do, and may be killed."""

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
    """Our client, in front of what this process has on its path."""
    return os.pathsep.join([str(CLIENTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def end_process(process: subprocess.Popen[str]) -> None:
    """Kills a process that is given orders over pipes, and closes the pipes."""
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
        """Has something done, and does not wait for it."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Waits for what the oldest order that is not answered comes to."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the engine's process has ended")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Has something done, and waits for it."""
        self.order(do, **arguments)
        return self.answer()

    def region(self, do: str, **arguments: Any) -> Region:
        """Has a tensor made: memory for the depot to map."""
        told = self.ask(do, **arguments)
        handle = CudaIpc(bytes.fromhex(told["handle"]), told["offset_bytes"], self._uuid)
        return Region(told["size_bytes"], handle)

    def kill(self) -> None:
        """As the kernel does it when memory is short; the process is gone when this returns."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the process, and its pipes."""
        end_process(self._process)

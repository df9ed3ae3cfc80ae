"""`service_engine.py` as a process of its own, as a test sees it: every wait has a bound, and it may be killed."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.gpu.engine_process import end_process

REPOSITORY = Path(__file__).parents[2]

LIMIT_SECONDS = 60.0


class EngineError(Exception):
    """An order raised an error in the engine; ``name`` is its type, ``reason`` that of a DepotError."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.reason = reason


class ServiceEngine:
    """Starts at once and does not wait for it: torch takes its time. CUDA is used from the first attach on."""

    def __init__(self, **variables: str) -> None:
        path = os.pathsep.join(
            (str(REPOSITORY), str(REPOSITORY / "clients" / "python"), *filter(None, [os.environ.get("PYTHONPATH")]))
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.service_engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": path, **variables},
        )
        self.stored: list[int] = []
        """Seeds of the prompts that the depot has said to be stored, of `store_on_and_on` and `retrieve_on_and_on`."""
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def order(self, do: str, **arguments: Any) -> None:
        """Give an order, and do not wait for its answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Return the answer to the oldest order without one.

        Raises: EngineError; queue.Empty if it takes too long.
        """
        answer = self._answers.get(timeout=LIMIT_SECONDS)
        if answer is None:
            raise EngineError("Ended", "", f"the process ended with exit code {self._process.wait()}")
        if "error" in answer:
            raise EngineError(answer["error"], answer["reason"], answer["message"])
        return answer["answer"]

    def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order and wait for its answer.

        Raises: EngineError, queue.Empty.
        """
        self.order(do, **arguments)
        return self.answer()

    def kill(self) -> None:
        """Kill the process. It is gone when this returns, and `stored` is complete."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def close(self) -> None:
        """End the process, and its pipes."""
        self.kill()
        end_process(self._process)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "stored" in answer:
                self.stored.append(answer["stored"])
            else:
                self._answers.put(answer)
        self._answers.put(None)

"""The child processes of the fuzzer: the depot, and the witness."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 60.0
END_SECONDS = 15.0
ANSWER_SECONDS = 120.0
ERROR_TEXTS = (
    "Traceback (most recent call last)",
    "unexpected error",
    "exception was never retrieved",
    "Task was destroyed",
)
_MOST_LINES = 60

# Short times and little memory, so that chunks are evicted and leases, sessions and waits come to their ends.
FLAGS = {
    "l1-size": "1MiB",
    "l1-huge-pages": "none",
    "chunk-size": "16",
    "lease-ttl": "2s",
    "pin-ttl-max": "2s",
    "session-idle-timeout": "2s",
    "max-wait": "100ms",
    "max-message-size": "2MiB",
    "prometheus-port": "0",
    "l0-sample-rate": "1",
    "log-level": "warning",
    "drain-timeout": "1s",
}
MOST_MESSAGE_BYTES = 2 << 20


async def _python(*arguments: str, log: Any, **pipes: Any) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
    others = [path for path in (environment.get("PYTHONPATH"),) if path]
    environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python"), *others))
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=REPOSITORY, env=environment, stderr=log, process_group=0, **pipes
    )


async def _end(process: asyncio.subprocess.Process) -> bool:
    """Ask a process to end; return whether it did."""
    if process.returncode is not None:
        return True
    process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
            return True
    process.kill()
    await process.wait()
    return False


class Depot:
    """A depot in a process of its own, and the socket on which it is audited."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, addresses: Sequence[str], streams: Any) -> None:
        self.addresses = addresses
        self._process = process
        self._log = log
        self._log_bytes = 0
        self._reader, self._writer = streams
        self._asking = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.returncode is None

    async def last_words(self) -> str:
        """Return how the process ended, if it did, and the end of its log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        return f"exit code {self._process.returncode}, its log ends with\n{_end_of(self._log)}"

    async def ask(self, question: str) -> Any:
        """Return the audit's answer.

        Raises: ConnectionError if the process has died, TimeoutError if its loop hangs.
        """
        async with self._asking, asyncio.timeout(ANSWER_SECONDS):
            self._writer.write(question.encode() + b"\n")
            line = await self._reader.readline()
        if not line:
            raise ConnectionError("the depot's process has ended")
        return json.loads(line)

    def complaints(self) -> list[str]:
        """Return the lines since the previous call that report a bug, each with the lines after it."""
        with self._log.open("rb") as log:
            log.seek(self._log_bytes)
            new = log.read()
        self._log_bytes += len(new)
        lines = new.decode(errors="replace").splitlines()
        first = next((at for at, line in enumerate(lines) if any(text in line for text in ERROR_TEXTS)), None)
        return [] if first is None else lines[max(0, first - 1) : first + _MOST_LINES]


@asynccontextmanager
async def depot(sabotage: str = "none") -> AsyncIterator[Depot]:
    """Run a depot with little memory and short times during the block.

    Raises: RuntimeError.
    """
    with tempfile.TemporaryDirectory(prefix="kvdepot-fuzz-") as name:
        folder = Path(name)
        log, socket = folder / "depot.log", folder / "audit.sock"
        listen = ("--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/depot.sock")
        flags = [part for flag, value in FLAGS.items() for part in (f"--{flag}", value)]
        with log.open("wb") as written:
            process = await _python(
                "tests.fuzz.depot_process", str(socket), sabotage, *listen, *flags, log=written, stdout=written
            )
        try:
            streams = await _connected(process, socket, log)
            reader, writer = streams
            writer.write(b"addresses\n")
            addresses = json.loads(await reader.readline())["grpc"]
            yield Depot(process, log, addresses, streams)
        finally:
            if not await _end(process):
                raise RuntimeError("the depot did not end when it was asked to")


async def _connected(process: asyncio.subprocess.Process, socket: Path, log: Path) -> Any:
    with suppress(TimeoutError):
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                with suppress(OSError):
                    return await asyncio.open_unix_connection(socket, limit=1 << 24)
                await asyncio.sleep(0.02)
    raise RuntimeError(f"the depot did not start:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


class Witness:
    """The healthy client's process, and its output so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._said: deque[dict[str, Any]] = deque()
        self.longest_seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.ready = asyncio.Event()

    async def listen(self) -> None:
        """Read its output to the end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self.ready.set()
            elif "counts" in said:
                self.counts, self.longest_seconds = said["counts"], said["longest"]
            else:
                self._said.append(said)
        self.ready.set()

    def take(self) -> list[dict[str, Any]]:
        """Return its faults and slow calls since the last call."""
        said = list(self._said)
        self._said.clear()
        return said

    async def end(self) -> None:
        """Let it finish its call, and read its summary."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        if self._process.returncode:
            self._said.append({"fault": f"it ended with exit code {self._process.returncode}"})


@asynccontextmanager
async def witness(address: str) -> AsyncIterator[Witness]:
    """Run a healthy client during the block."""
    process = await _python(
        "tests.fuzz.witness",
        address,
        log=None,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    watching = Witness(process)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watching.listen())
            async with asyncio.timeout(START_SECONDS):
                await watching.ready.wait()
            yield watching
            await watching.end()
    finally:
        await _end(process)

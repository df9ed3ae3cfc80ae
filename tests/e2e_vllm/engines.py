"""Real engines and a real server, as processes that a case can kill, stop and start again."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
ENGINE = Path(__file__).parent / "engine_main.py"
START_SECONDS = 900.0
ANSWER_SECONDS = 900.0
RECORD_VARIABLE = "RECORD_TO"  # the file of a RecordingConnector
COUNT_VARIABLE = "COUNT_TO"  # the file of a CountingConnector
# Of an ArchiveConnector: two parameters of requests, two settings.
ARCHIVE_SAVE, ARCHIVE_LOAD, ARCHIVE_ASYNC, ARCHIVE_LOG = "archive.save", "archive.load", "archive.async", "archive.log"
SLOW_STEP_SECONDS = 6.0  # of a SlowConnector's steps while its `slow_file` exists
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1",  # vLLM turns it off, because it is slow
}
PATHS = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))


def slow_file(address: str) -> Path:
    """Return the file that makes the steps of this depot's SlowConnectors slow while it exists."""
    return Path(address.removeprefix("unix:") + ".slow")


class EngineFailed(Exception):
    """The engine's process has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of one request: the generated ``tokens``, and how many of its prompt were ``cached``.

    If it asked for several ``samples``, these are those of the first one.
    """

    tokens: tuple[int, ...] = ()
    cached: int = 0
    samples: tuple[tuple[int, ...], ...] = ()
    cached_of_samples: tuple[int, ...] = ()
    first_seconds: float = 0.0
    seconds: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Engine:
    """A vLLM engine, made by `running_engine`."""

    process: asyncio.subprocess.Process
    vllm_version: str = ""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        ready = self._waiting[0] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())
        async with asyncio.timeout(START_SECONDS):
            self.vllm_version = (await ready)["vllm"]

    async def generate(self, prompt: Sequence[int], max_tokens: int = 16, **more: Any) -> Answer:
        """Run one request."""
        found = await self.do("generate", prompt=list(prompt), max_tokens=max_tokens, **more)
        if "error" in found or "aborted" in found:
            return Answer(error=found.get("error", "aborted"))
        return Answer(
            tokens=tuple(found["tokens"]),
            cached=found["cached"] or 0,
            samples=tuple(map(tuple, found["samples"])),
            cached_of_samples=tuple(cached or 0 for cached in found["cached_of_samples"]),
            first_seconds=found["first_seconds"],
            seconds=found["seconds"],
        )

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Run one command. If this is cancelled, vLLM aborts it."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._send({"do": what, "number": number, "id": f"request-{number}", **arguments})
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except asyncio.CancelledError:
            self._send({"do": "abort", "which": number})
            raise

    def kill(self) -> None:
        """Kill all of the engine's processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """End the engine in order, or kill it after a minute."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(60):
                await self.process.wait()
        except TimeoutError:
            self.kill()
        with suppress(ProcessLookupError):
            self.kill()
        await self.process.wait()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    def _send(self, command: dict[str, Any]) -> None:
        if self.process.stdin is None or self.process.stdin.is_closing():
            return
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            waiting = self._waiting.pop(answer.pop("number"))
            if not waiting.done():
                waiting.set_result(answer)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(EngineFailed("the engine's process has ended; see its log"))


@asynccontextmanager
async def running_engine(python: Path, log: Path, options: dict[str, Any], **variables: str) -> AsyncIterator[Engine]:
    """Run an engine while the block runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            python,
            ENGINE,
            json.dumps(options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**environment, **QUIET, "PYTHONPATH": PATHS, **variables},
            limit=1 << 26,
            process_group=0,
        )
    engine = Engine(process)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


@dataclass(slots=True)
class Server:
    """`kvdepot serve` on a unix socket."""

    socket: Path
    log: Path
    flags: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    async def start(self) -> None:
        """Start it unless it runs, and wait until it listens."""
        if self.process is not None and self.process.returncode is None:
            return
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kvdepot", "serve", "--listen", self.address, "--prometheus-port", "0"),
                *self.flags,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env={**environment, "PYTHONPATH": PATHS},
            )
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(self.socket)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal and wait for its end."""
        if self.process is not None and self.process.returncode is None:
            self.send(number)
            await self.process.wait()

"""A depot whose process is killed and started again, and engines that store into it until then."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from kvdepot import AsyncDepotClient, DepotError, token_prefix
from tests.e2e.engines import SMALL, Engine, attach, prompt

REPOSITORY = Path(__file__).parents[2]
CHUNK_SIZE = 16
START_SECONDS = 30.0


class DepotProcess:
    """A depot on a unix socket whose L1 is a file, unless `in_file` is False. `log` is what all its processes log."""

    def __init__(self, folder: Path, *flags: str, in_file: bool = True) -> None:
        self.address = f"unix:{folder}/depot.sock"
        self.file = folder / "l1"
        self._log = folder / "log"
        self.flags = (*flags, *(("--l1-file", str(self.file)) if in_file else ()))
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *flags: str, **variables: str) -> float:
        """Start a process. Return the seconds until it serves."""
        command = (sys.executable, "-m", "kvdepot", "serve", "--listen", self.address, "--prometheus-port", "0")
        size = ("--chunk-size", str(CHUNK_SIZE))
        return await self._start((*command, *size, *self.flags, *flags), variables)

    async def start_with(self, fd: int, **variables: str) -> float:
        """Start a process with a descriptor, as systemd does. Return the seconds until it serves."""
        flags = " ".join(("--listen", self.address, "--prometheus-port", "0", "--chunk-size", "16", *self.flags))
        script = f"exec 3<&{fd}; export LISTEN_PID=$$ LISTEN_FDS=1; exec {sys.executable} -m kvdepot serve {flags}"
        return await self._start(("bash", "-c", script), variables, (fd,))

    async def _start(self, command: Sequence[str], variables: Mapping[str, str], pass_fds: Sequence[int] = ()) -> float:
        begin = time.monotonic()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}", **variables},
                pass_fds=pass_fds,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            assert await self._process.stdout.readline(), f"the depot did not start: {self.log()}"
        return time.monotonic() - begin

    async def ended(self) -> int:
        """Wait until the process that was started last ends. Return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    def send(self, number: int) -> None:
        """Send the process a signal that does not end it."""
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: int = signal.SIGKILL) -> None:
        """Send the process a signal, and wait for its end."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()

    def log(self) -> str:
        """Return what its processes have logged."""
        return self._log.read_text()


@contextmanager
def depot_folder() -> Iterator[Path]:
    """Make a folder in memory while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="kvdepot-restart-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def depot_process(*flags: str, in_file: bool = True) -> AsyncIterator[DepotProcess]:
    """Run a depot while the block runs; it may end and start again meanwhile."""
    with depot_folder() as folder:
        depot = DepotProcess(folder, *flags, in_file=in_file)
        try:
            await depot.start()
            yield depot
        finally:
            await depot.end()


@asynccontextmanager
async def engines(address: str, count: int = 1, **options: Any) -> AsyncIterator[list[Engine]]:
    """Attach engines while the block runs. The depot may be dead at its end."""
    async with AsyncExitStack() as stack:
        attached = []
        for number in range(count):
            client = await stack.enter_async_context(AsyncDepotClient(address))
            engine = await attach(client, SMALL, instance_id=f"engine-{number}-{time.monotonic_ns()}", **options)
            stack.push_async_callback(_close, engine)
            attached.append(engine)
        yield attached


async def _close(engine: Engine) -> None:
    with suppress(DepotError):
        await engine.attachment.close()
    engine.buffer.close()


def length_of(seed: int) -> int:
    """Return how many tokens the prompt of a seed has: one to eight chunks."""
    return int(np.random.default_rng(seed).integers(1, 9)) * CHUNK_SIZE


async def store(engine: Engine, seed: int) -> None:
    """Store the prompt of a seed."""
    num_tokens = length_of(seed)
    await engine.store(f"store-{seed}", token_prefix(prompt(num_tokens, seed)), engine.kv(num_tokens, seed))
    await engine.end_session(f"store-{seed}")


async def found_tokens(engine: Engine, seed: int) -> int:
    """Return how many tokens of the prompt of a seed the depot has. All their bytes are right."""
    num_tokens = length_of(seed)
    session_id = f"find-{seed}"
    found = await engine.holds(session_id, token_prefix(prompt(num_tokens, seed)), engine.kv(num_tokens, seed))
    await engine.end_session(session_id)
    return found


async def store_until_dead(engine: Engine, seeds: Iterator[int]) -> tuple[list[int], list[int]]:
    """Store prompts until the depot is gone. Return the seeds that were acknowledged, and those that were not."""
    acknowledged: list[int] = []
    for seed in seeds:
        try:
            await store(engine, seed)
        except DepotError:
            return acknowledged, [seed]
        acknowledged.append(seed)
    return acknowledged, []


async def share_found(engine: Engine, seeds: Sequence[int]) -> float:
    """Return which share of the tokens of some prompts the depot has."""
    found = [await found_tokens(engine, seed) for seed in seeds]
    return sum(found) / sum(map(length_of, seeds))

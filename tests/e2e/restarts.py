"""A depot whose process is killed and started again, and engines that store into it until then."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
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
    """A depot on a unix socket whose L1 is a file. `log` has the standard error of all its processes."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.address = f"unix:{folder}/depot.sock"
        self.file = folder / "l1"
        self._log = folder / "log"
        self._flags = flags
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *flags: str) -> float:
        """Start a process. Return the seconds until it serves."""
        begin = time.monotonic()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "kvdepot", "serve", "--listen", self.address, "--prometheus-port", "0"),
                *("--chunk-size", str(CHUNK_SIZE), "--l1-file", str(self.file), *self._flags, *flags),
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}"},
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            assert await self._process.stdout.readline(), f"the depot did not start: {self.log()}"
        return time.monotonic() - begin

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
async def depot_process(*flags: str) -> AsyncIterator[DepotProcess]:
    """Run a depot while the block runs; it may end and start again meanwhile."""
    with depot_folder() as folder:
        depot = DepotProcess(folder, *flags)
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

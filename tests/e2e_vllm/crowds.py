"""A crowd that never pauses: its requests come while a case does something to the depot."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.e2e_vllm.cases import ALONE, CROWD, SOME, Proof, Tokens
from tests.e2e_vllm.engines import Engine

PROMPTS = [*SOME[:4], *CROWD[:2], ALONE[0]]
CLIENTS_PER_ENGINE = 4
REQUESTS_PER_SALT = 20  # then a new salt empties all caches: that of the depot, and vLLM's own
REACHED_SECONDS = 240.0  # on a busy machine
ABORTED_SHARE = 0.1
ABORT_SECONDS = 0.4


@dataclass(slots=True)
class SteadyCrowd:
    """What became of the requests so far."""

    proof: Proof
    prompts: Sequence[Tokens]
    started: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    num_begun: int = 0
    num_done: int = 0
    num_tokens: int = 0
    num_aborted: int = 0
    longest_seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.num_done} requests, {self.num_tokens} tokens identical, {self.num_aborted} more aborted, "
            f"the longest took {self.longest_seconds:.1f} s"
        )

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait until it is so, or until a fault ends the crowd."""
        try:
            async with asyncio.timeout(REACHED_SECONDS):
                while not self.ended.is_set() and not await condition():  # noqa: ASYNC110 - in other processes
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"not within {REACHED_SECONDS:g} s: {what}; {self}") from None

    async def client(self, engine: Engine, seed: int) -> None:
        """Send one request after the other until the crowd ends."""
        numbers = random.Random(seed)
        try:
            while not self.ended.is_set():
                await self._request(engine, numbers)
        finally:
            self.ended.set()  # after a fault nothing goes on

    async def _request(self, engine: Engine, numbers: random.Random) -> None:
        prompt = numbers.choice(self.prompts)
        salt = f"crowd at {self.started} in {self.num_begun // REQUESTS_PER_SALT}"
        self.num_begun += 1
        aborted_after = numbers.uniform(0, ABORT_SECONDS) if numbers.random() < ABORTED_SHARE else None
        start = time.monotonic()
        try:
            async with asyncio.timeout(aborted_after):
                answer = await engine.generate(prompt, cache_salt=salt)
        except TimeoutError:
            if aborted_after is None:
                raise
            self.num_aborted += 1
            return
        self.proof.plain.check([prompt], [answer])
        self.num_done += 1
        self.num_tokens += len(answer.tokens)
        self.longest_seconds = max(self.longest_seconds, time.monotonic() - start)


@asynccontextmanager
async def steady_crowd(
    proof: Proof, engines: Sequence[Engine], prompts: Sequence[Tokens] = PROMPTS
) -> AsyncIterator[SteadyCrowd]:
    """Send requests to all engines while the block runs. Each token must be that of an engine without a depot."""
    crowd = SteadyCrowd(proof, prompts)
    clients = [
        asyncio.create_task(crowd.client(engine, 100 * number + client))
        for number, engine in enumerate(engines)
        for client in range(CLIENTS_PER_ENGINE)
    ]
    try:
        yield crowd
    except BaseException:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        raise
    crowd.ended.set()
    await asyncio.gather(*clients)

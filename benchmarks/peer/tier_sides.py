"""Both sides of a comparison of tiers: an engine of a depot with a tier, and an engine of the peer's server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks import servers
from benchmarks.peer import shapes
from benchmarks.peer.depot import DepotEngine, Ids, WrongBytes
from benchmarks.peer.processes import Driver, PeerFailed
from benchmarks.peer.setups import driver, server
from benchmarks.peer.tier_stores import Store
from kvdepot import AsyncDepotClient, DepotError

AVAILABLE_SECONDS = 30.0
DRIVER = "benchmarks.peer.tier_driver"


class RoundFailed(Exception):
    """Not all bytes came from the tier, or not in time: a round without a figure."""


class Side(Protocol):
    """An engine that stores prompts in a tier and fetches them."""

    async def fill(self, blocks: Ids) -> None:
        """Write random bytes to blocks."""

    async def store(self, tokens: Ids, blocks: Ids) -> float:
        """Store a prompt. Return the time of the machine's clock at which it began. Raises: RoundFailed."""

    async def count(self) -> int:
        """Return a number that grows by one with each chunk that the tier has got."""

    async def forget(self) -> None:
        """Remove the prompts from L1, where the next store does not do so."""

    async def fetch(self, tokens: Ids, blocks: Ids) -> float:
        """Look a prompt up and retrieve it. Return the seconds. Raises: RoundFailed, if a part was not in the tier."""

    async def check(self, blocks: Ids, other_blocks: Ids) -> None:
        """Compare the bytes of blocks with those of others. Raises: WrongBytes or PeerFailed, if they differ."""

    async def miss(self, num_tokens: int, clients: int, seconds: float) -> float:
        """Return how many lookups a second find nothing, each with the end of its session."""


@dataclass(frozen=True, slots=True)
class OurSide:
    """An engine of a depot. L1 has space for one prompt, so each store or fetch evicts the prompt before it."""

    engine: DepotEngine
    client: AsyncDepotClient

    @property
    def _planes(self) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return self.engine.buffer.array.reshape(-1, shapes.NUM_BLOCKS, shapes.BLOCK_BYTES)

    async def fill(self, blocks: Ids) -> None:
        """Write random bytes to blocks."""
        random = np.random.default_rng()
        for plane in self._planes:
            plane[blocks] = random.integers(0, 256, (len(blocks), shapes.BLOCK_BYTES), dtype=np.uint8)

    async def store(self, tokens: Ids, blocks: Ids) -> float:
        """Store a prompt."""
        session = str(next(self.engine.names))
        begin = time.monotonic()
        answer = await self.engine.large.store(session, tokens, [blocks])
        await self.engine.large.end_session(session)
        if answer.stored_tokens != len(tokens):
            raise RoundFailed(f"of {len(tokens)} tokens, {answer.stored_tokens} were stored")
        return begin

    async def count(self) -> int:
        """Return the chunks that the tier has written."""
        return (await self.client.get_status()).tiers[1].traffic.num_writes_by_outcome["ok"]

    async def forget(self) -> None:
        """Do nothing: L1 is as large as a prompt."""

    async def fetch(self, tokens: Ids, blocks: Ids) -> float:
        """Look a prompt up and retrieve it."""
        session = str(next(self.engine.names))
        begin = time.perf_counter()
        try:
            found = await self.engine.large.lookup(session, tokens)
            if (found.matched_tokens, found.l2_tokens) != (len(tokens), len(tokens)):
                raise RoundFailed(
                    f"of {len(tokens)} tokens, {found.matched_tokens} were found, {found.l2_tokens} in L2"
                )
            await self.engine.large.retrieve(session, found.lease, [blocks])
            return time.perf_counter() - begin
        except DepotError as error:
            raise RoundFailed(f"a part of the prompt did not arrive: {error}") from error
        finally:
            await self.engine.large.end_session(session)

    async def check(self, blocks: Ids, other_blocks: Ids) -> None:
        """Compare the bytes of blocks."""
        if not all(np.array_equal(plane[blocks], plane[other_blocks]) for plane in self._planes):
            raise WrongBytes("kvdepot's tier gave other bytes back than were stored")

    async def miss(self, num_tokens: int, clients: int, seconds: float) -> float:
        """Return the lookup transactions a second."""
        return await self.engine.miss(num_tokens, clients, seconds)


@dataclass(frozen=True, slots=True)
class PeerSide:
    """The driver of the peer's server. What it sends waits in a thread, so that the depot's client answers pings."""

    driver: Driver
    pid: int
    place: Store

    async def fill(self, blocks: Ids) -> None:
        """Write random bytes to blocks."""
        await self._send("fill", blocks=blocks.tolist())

    async def store(self, tokens: Ids, blocks: Ids) -> float:
        """Store a prompt."""
        return (await self._send("store", tokens=tokens.tolist(), blocks=blocks.tolist()))["begin"]

    async def count(self) -> int:
        """Return the chunks that are in the store, seen from outside."""
        return await asyncio.to_thread(self.place.count)

    async def forget(self) -> None:
        """Clear L1."""
        await self._send("forget")

    async def fetch(self, tokens: Ids, blocks: Ids) -> float:
        """Look a prompt up and retrieve it."""
        before = await asyncio.to_thread(self.place.delivered_bytes, self.pid)
        answer = await self._send("fetch", tokens=tokens.tolist(), blocks=blocks.tolist())
        delivered = await asyncio.to_thread(self.place.delivered_bytes, self.pid) - before
        if answer["found_tokens"] != len(tokens):
            raise RoundFailed(f"of {len(tokens)} tokens, {answer['found_tokens']} were found")
        if delivered < len(tokens) * shapes.TOKEN_BYTES:
            raise RoundFailed(f"only {delivered:,} bytes of {len(tokens)} tokens came from the tier")
        return answer["seconds"]

    async def check(self, blocks: Ids, other_blocks: Ids) -> None:
        """Compare the bytes of blocks."""
        answer = await self._send("compare", blocks=blocks.tolist(), other_blocks=other_blocks.tolist())
        if not answer["equal"]:
            raise PeerFailed(f"{self.place.setup} gave other bytes back than were stored")

    async def miss(self, num_tokens: int, clients: int, seconds: float) -> float:
        """Return the lookup transactions a second."""
        return (await self._send("miss", num_tokens=num_tokens, clients=clients, seconds=seconds))["rate"]

    async def _send(self, do: str, **arguments: object) -> dict[str, float]:
        return await asyncio.to_thread(self.driver.ask, do, **arguments)


@asynccontextmanager
async def our_side(store: Store, l1_bytes: int) -> AsyncIterator[OurSide]:
    """Run a depot with the store as its tier, and an engine."""
    flags = ("--l1-size", str(l1_bytes), "--l2", store.url, "--l2-write", "all")
    with servers.depot(*flags, "--transfer-threads", str(shapes.THREADS)) as depot:
        async with AsyncDepotClient(depot.tcp) as client, DepotEngine.attached(depot.tcp) as engine:
            async with asyncio.timeout(AVAILABLE_SECONDS):
                await servers.until_available(client)
            yield OurSide(engine, client)


@contextmanager
def peer_side(store: Store) -> Iterator[PeerSide]:
    """Run the peer's server with the store as its tier, and an engine.

    Raises:
        PeerFailed: one of them did not start.
    """
    with server(store.setup) as serving, driver(store.setup, serving.url, DRIVER) as engine:
        engine.ask("attach_large")
        engine.ask("attach_small")
        yield PeerSide(engine, serving.pid, store)

"""The clients of a run, and the engines that their calls use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from tests.fuzz.calls import ATTACH
from tests.fuzz.sending import PLAIN, Client
from tests.fuzz.things import Things

_STANDING = replace(PLAIN, deadline_seconds=None, reads=1, stays_open=True)


class Homes:
    """The ranks that calls use: attached, and attached again if a call ended that."""

    def __init__(self, address: str, existing: Things) -> None:
        self._client = Client(address)
        self._existing = existing
        self._streams: dict[int, Any] = {}

    async def attach(self) -> None:
        """Attach those that are not. Raises: RuntimeError."""
        for number, rank in enumerate(self._existing.homes):
            stream = self._streams.get(number)
            if stream is not None and not stream.done():
                continue
            attached = await self._client.call(ATTACH, [rank.request.SerializeToString()], _STANDING)
            if attached.code == "OK" and self._client.open_calls:
                self._streams[number] = self._client.open_calls.pop()
            elif stream is None:
                raise RuntimeError(f"{rank.request.instance_id} was not attached: {attached}")

    async def close(self) -> None:
        """Detach all."""
        self._streams.clear()
        await self._client.close()


@asynccontextmanager
async def connected(
    addresses: Sequence[str], num_clients: int, existing: Things
) -> AsyncIterator[tuple[Sequence[Client], Homes]]:
    """Open clients of the addresses, round robin, and the engines that stay attached."""
    async with AsyncExitStack() as stack:
        homes = Homes(addresses[-1], existing)
        stack.push_async_callback(homes.close)
        clients = [Client(addresses[number % len(addresses)]) for number in range(num_clients)]
        for client in clients:
            stack.push_async_callback(client.close)
        yield clients, homes

"""A fake depot, and both clients under one way of calling them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from kvdepot import AsyncDepotClient, DepotClient
from tests.fakes.depot import FakeDepot


class Side:
    """One of the two clients, so that each test runs on both. A blocking call runs in a thread."""

    def __init__(self, client_class: Callable[..., Any]) -> None:
        self.client_class = client_class
        self.blocks = client_class is DepotClient

    async def __call__(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.blocks:
            return await asyncio.to_thread(method, *args, **kwargs)
        return await method(*args, **kwargs)

    async def all(self, responses: Any) -> list[Any]:
        """Return everything that a stream brings."""
        if self.blocks:
            return await asyncio.to_thread(list, responses)
        return [response async for response in responses]

    async def first(self, responses: Any) -> Any:
        """Return the first message of a stream, and close it."""
        if self.blocks:
            message = await asyncio.to_thread(next, responses)
            await asyncio.to_thread(responses.close)
        else:
            message = await anext(responses)
            await responses.aclose()
        return message


@pytest.fixture
def depot() -> Iterator[FakeDepot]:
    depot = FakeDepot()
    depot.start()
    yield depot
    depot.stop()


@pytest.fixture(params=[DepotClient, AsyncDepotClient], ids=["blocking", "asyncio"])
def side(request: pytest.FixtureRequest) -> Side:
    return Side(request.param)


@pytest.fixture
async def client(side: Side, depot: FakeDepot) -> AsyncIterator[Any]:
    client = side.client_class(depot.address)
    yield client
    await side(client.close)


@pytest.fixture
async def attachment(side: Side, client: Any) -> AsyncIterator[Any]:
    attachment = await side(client.attach, instance_id="engine-0", model_name="model", groups=[], rank=0)
    yield attachment
    await side(attachment.close)

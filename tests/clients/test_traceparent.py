"""Every kind of call of both clients carries the caller's traceparent, and none where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kvdepot.rpc import traceparent
from tests.clients.conftest import Side
from tests.fakes.depot import FakeDepot

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class TracedDepot(FakeDepot):
    """Keeps the header of the last call of each RPC."""

    def __init__(self) -> None:
        super().__init__()
        self.parents: dict[str, Any] = {}

    def _enter(self, rpc: str, request: Any, context: Any) -> None:
        self.parents[rpc] = dict(context.invocation_metadata()).get("traceparent")
        super()._enter(rpc, request, context)


@pytest.fixture
def depot() -> Iterator[FakeDepot]:
    depot = TracedDepot()
    depot.start()
    yield depot
    depot.stop()


async def test_calls_carry_the_callers_trace(side: Side, attachment: Any, depot: TracedDepot) -> None:
    await side(attachment.store, "session", [1] * 8, [[0]])
    assert depot.parents["Store"] is None
    token = traceparent.set(PARENT)
    try:
        await side(attachment.store, "session", [1] * 8, [[0]])
        await side.all(attachment.retrieve_inline("session", "lease"))
        await side(attachment.store_inline, "session", [1] * 8, b"bytes")
    finally:
        traceparent.reset(token)
    await side(attachment.end_session, "session")
    expected = {"Store": PARENT, "RetrieveInline": PARENT, "StoreInline": PARENT, "EndSession": None}
    assert {rpc: depot.parents[rpc] for rpc in expected} == expected

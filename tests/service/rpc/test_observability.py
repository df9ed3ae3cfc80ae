"""Pages of sessions: each session that stays is listed once, also when others begin and end between two pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.v1 import observability_pb2
from service.access.credentials import DEFAULT_CALLER, caller
from service.depot.depot import Depot, DepotLimits
from service.depot.sessions import MAX_ENDED_REMEMBERED
from service.depot.tenant_depots import TenantDepots
from service.rpc.observability import ObservabilityServicer
from telemetry.kinds import SessionEnd

CHANGES = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "use"]), st.sampled_from("ij"), st.integers(0, 50)), max_size=12
)


class NoBackend:
    """Moves nothing."""

    name = "none"


def new_depots() -> TenantDepots:
    return TenantDepots(memoryview(bytearray(1 << 16)), NoBackend(), DepotLimits(), None)  # type: ignore[arg-type]


async def page(
    depots: TenantDepots, token: str, *, instance_id: str = "", page_size: int = 3
) -> observability_pb2.ListSessionsResponse:
    request = observability_pb2.ListSessionsRequest(instance_id=instance_id, page_size=page_size, page_token=token)
    caller.set(DEFAULT_CALLER)
    return await ObservabilityServicer(depots, None).ListSessions(request, None)


def change(depot: Depot, what: str, instance_id: str, number: int) -> None:
    live = depot.sessions.of_instance(instance_id)
    if what == "begin":
        depot.sessions.begin(instance_id, f"later {len(depot.sessions)} {number}", "m")
    elif live and what == "end":
        depot.sessions.end(live[number % len(live)], SessionEnd.REQUESTED)
    elif live:
        depot.sessions.used(live[number % len(live)])


@pytest.fixture(scope="module", autouse=True)
def few_are_remembered() -> None:
    assert MAX_ENDED_REMEMBERED > 12 * 12  # so that what this test ends stays listed


@given(st.lists(st.sampled_from("ij"), max_size=12), st.lists(CHANGES, max_size=12), st.sampled_from(["", "i"]))
async def test_sessions_that_stay_are_listed_once_while_others_come_and_go(
    instance_ids: list[str], changes: list[list[tuple[str, str, int]]], instance_id: str
) -> None:
    depots = new_depots()
    watched = depots.of_default_tenant()
    for number, each in enumerate(instance_ids):
        watched.sessions.begin(each, str(number), "m")
    expected = [(each, str(number)) for number, each in enumerate(instance_ids) if instance_id in ("", each)]
    found, token, steps = [], "", iter(changes)
    while True:
        answer = await page(depots, token, instance_id=instance_id)
        found += [(each.instance_id, each.session_id) for each in answer.sessions]
        token = answer.next_page_token
        if not token:
            break
        for step in next(steps, []):
            change(watched, *step)
    assert found == expected[::-1]


async def test_a_page_that_ends_with_the_last_session_is_the_last() -> None:
    depots = new_depots()
    watched = depots.of_default_tenant()
    for number in range(6):
        watched.sessions.begin("i", str(number), "m")
    first = await page(depots, "")
    second = await page(depots, first.next_page_token)
    assert [len(first.sessions), len(second.sessions), second.next_page_token] == [3, 3, ""]


async def test_pages_go_on_though_the_last_session_of_the_page_before_is_forgotten() -> None:
    depots = new_depots()
    watched = depots.of_default_tenant()
    for number in range(6):
        watched.sessions.begin("i", str(number), "m")
    first = await page(depots, "")
    for number in range(3, 6):
        watched.sessions.end(watched.sessions.require("i", str(number)), SessionEnd.REQUESTED)
    for number in range(MAX_ENDED_REMEMBERED):
        watched.sessions.end(watched.sessions.begin("j", str(number), "m"), SessionEnd.REQUESTED)
    second = await page(depots, first.next_page_token)
    assert [each.session_id for each in second.sessions] == ["2", "1", "0"]


async def test_a_large_page_lets_others_go_first() -> None:
    depots = new_depots()
    watched = depots.of_default_tenant()
    for number in range(1_000):
        watched.sessions.begin("i", str(number), "m")
    answer = await page(depots, "", page_size=1_000)
    assert [each.session_id for each in answer.sessions] == [str(number) for number in range(999, -1, -1)]
    assert answer.next_page_token == ""

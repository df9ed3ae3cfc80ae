"""The routes of a trace: each is chosen with the events of the requests before, or with those of some requests less."""

from __future__ import annotations

import queue

import pytest

from examples.router.events import BlockStored
from examples.router.policies import LongestPrefix
from examples.router.reader import Change, Condition
from examples.router.router import Router
from examples.router.routes import Routes
from kvdepot.cli.request_trace import Trace, token_ids

BLOCK_TOKENS = 4
PROMPT = (1, 2)


def routes_of(num_requests: int, late_requests: int) -> tuple[Routes, queue.Queue[Change]]:
    """Return the routes of equal requests to two depots that answer."""
    changes: queue.Queue[Change] = queue.Queue()
    for depot in range(2):
        changes.put(Change(depot=depot, condition=Condition.ANSWERS))
    trace = Trace([PROMPT] * num_requests, [()] * num_requests, BLOCK_TOKENS)
    router, heard = (Router(2, LongestPrefix(2, load_bound=2.0), "model") for _ in range(2))
    return Routes(trace, heard if late_requests else router, router, late_requests, changes), changes


def stored_by(depot: int) -> Change:
    event = BlockStored(
        block_hashes=[1, 2],
        parent_block_hash=None,
        token_ids=token_ids(PROMPT, BLOCK_TOKENS),
        block_size=BLOCK_TOKENS,
        medium="CPU_PINNED",
    )
    return Change(depot=depot, model="model", events=[event])


@pytest.mark.parametrize("late_requests", [0, 1, 3])
def test_what_a_request_stored_is_known_so_many_requests_late(late_requests: int) -> None:
    routes, changes = routes_of(8, late_requests)
    routes.wait_for_depots(2)
    expected = []
    for depot in routes:
        expected.append(routes.expected_tokens)
        changes.put(stored_by(depot))
    asked = len(PROMPT) * BLOCK_TOKENS
    known = [after - before for before, after in zip([0, *expected], expected, strict=False)]
    num_blind = late_requests + 1
    assert known[: num_blind + 1] == [0] * num_blind + [asked]
    assert routes.num_unheard == 0


def test_depots_that_do_not_answer_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.router.routes.ANSWER_SECONDS", 0.01)
    routes, _ = routes_of(1, 0)
    with pytest.raises(Exception, match="not all depots tell"):
        routes.wait_for_depots(3)


def test_events_that_do_not_come_are_counted_and_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.router.routes.LATEST_SECONDS", 0.01)
    routes, _ = routes_of(3, 0)
    routes.wait_for_depots(2)
    assert len(list(routes)) == 3
    assert routes.num_unheard == 3

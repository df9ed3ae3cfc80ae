"""A router knows what each depot told of its model, and sends requests to depots that answer."""

from __future__ import annotations

import pytest

from examples.router.events import AllBlocksCleared, BlockStored
from examples.router.index import Match, Prompt
from examples.router.policies import LongestPrefix
from examples.router.reader import Change, Condition
from examples.router.router import Router


def stored(*tokens: int, block_size: int = 2) -> BlockStored:
    return BlockStored(
        block_hashes=list(range(100 * block_size, 100 * block_size + len(tokens) // block_size)),
        parent_block_hash=None,
        token_ids=list(tokens),
        block_size=block_size,
        medium="CPU_PINNED",
    )


@pytest.fixture
def router() -> Router:
    """A router to two depots that answer, where the second one has four tokens."""
    router = Router(2, LongestPrefix(2), "model")
    for depot in range(2):
        router.apply(Change(depot=depot, condition=Condition.ANSWERS))
    router.apply(Change(depot=1, model="model", events=[stored(1, 2, 3, 4)]))
    return router


def test_the_depot_with_the_prefix_gets_the_request(router: Router) -> None:
    route = router.route(Prompt([1, 2, 3, 4, 5, 6, 7]))
    assert (route.depot, route.expected) == (1, Match(4, 4.0))


def test_events_of_another_model_change_nothing(router: Router) -> None:
    router.apply(Change(depot=0, model="another", events=[stored(1, 2, 3, 4)]))
    router.apply(Change(depot=1, model="another", events=[AllBlocksCleared()]))
    assert router.matches(Prompt([1, 2, 3, 4])) == [Match(), Match(4, 4.0)]


@pytest.mark.parametrize(("prompt", "tokens"), [((1, 2, 3, 4, 0, 0), 4), ((1, 2, 3, 5, 6, 7), 6)])
def test_of_blocks_of_several_sizes_the_best_match_counts(router: Router, prompt: list[int], tokens: int) -> None:
    router.apply(Change(depot=1, model="model", events=[stored(1, 2, 3, 5, 6, 7, block_size=3)]))
    assert router.matches(Prompt(prompt))[1] == Match(tokens, float(tokens))


@pytest.mark.parametrize("condition", [Condition.BEGINS_ANEW, Condition.IS_GONE])
def test_a_depot_that_begins_anew_or_is_gone_loses_its_blocks(router: Router, condition: Condition) -> None:
    router.apply(Change(depot=1, condition=condition))
    assert router.matches(Prompt([1, 2, 3, 4])) == [Match(), Match()]


def test_a_depot_that_is_gone_gets_no_request_until_it_answers(router: Router) -> None:
    router.apply(Change(depot=0, condition=Condition.IS_GONE))
    assert {router.route(Prompt([8, 9])).depot for _ in range(20)} == {1}
    router.apply(Change(depot=0, condition=Condition.ANSWERS))
    assert router.route(Prompt([8, 9])).depot == 0


def test_requests_go_on_while_no_depot_answers(router: Router) -> None:
    for depot in range(2):
        router.apply(Change(depot=depot, condition=Condition.IS_GONE))
    assert {router.route(Prompt([8, 9])).depot for _ in range(4)} == {0, 1}

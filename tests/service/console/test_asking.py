"""Questions from the thread of HTTP: equal ones are asked once, and no wait is without a bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.console import asking
from service.console.asking import MAX_ANSWERS, DepotBusy, DepotLoop
from service.errors import AdminOnly
from tests.fakes.clock import Clock


class Question:
    """Counts how often it is asked, and answers when it may."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self) -> Callable[[], Any]:
        self.num_asked += 1
        number = self.num_asked
        await self.may_answer.wait()
        return lambda: {"number": number}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asking, "monotonic", clock)
    return clock


@pytest.fixture
async def depot(clock: Clock) -> DepotLoop:
    return DepotLoop(asyncio.get_running_loop())


async def test_equal_questions_have_one_answer_for_a_while(depot: DepotLoop, clock: Clock) -> None:
    question = Question()
    question.may_answer.clear()
    asked = [asyncio.create_task(depot.ask("key", question, 1.0)) for _ in range(50)]
    await asyncio.sleep(0)
    question.may_answer.set()
    assert {json.loads(answer)["number"] for answer in await asyncio.gather(*asked)} == {1}
    assert json.loads(await depot.ask("key", question, 1.0)) == {"number": 1}
    assert json.loads(await depot.ask("other key", question, 1.0)) == {"number": 2}
    clock.advance(1.0)
    assert json.loads(await depot.ask("key", question, 1.0)) == {"number": 3}


async def test_a_reader_that_leaves_does_not_take_the_answer_of_others(depot: DepotLoop) -> None:
    question = Question()
    question.may_answer.clear()
    leaving, staying = (asyncio.create_task(depot.ask("key", question)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    question.may_answer.set()
    assert json.loads(await staying) == {"number": 1}


async def test_an_answer_that_takes_too_long_is_not_waited_for(
    depot: DepotLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "TIMEOUT_SECONDS", 0.01)
    question = Question()
    question.may_answer.clear()
    with pytest.raises(DepotBusy):
        await depot.ask("key", question)


async def test_an_error_of_the_question_reaches_the_reader(depot: DepotLoop) -> None:
    async def refuse() -> Callable[[], Any]:
        raise AdminOnly("no")

    with pytest.raises(AdminOnly):
        await depot.ask("key", refuse)


async def test_a_loop_that_has_ended_is_busy() -> None:
    ended = asyncio.new_event_loop()
    ended.close()
    with pytest.raises(DepotBusy):
        await DepotLoop(ended).ask("key", Question())


async def test_many_different_questions_take_no_more_memory(depot: DepotLoop) -> None:
    question = Question()
    for number in range(3 * MAX_ANSWERS):
        await depot.ask(number, question)
    assert len(depot._asked) == MAX_ANSWERS

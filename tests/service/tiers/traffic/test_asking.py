"""Questions to a tier: an answer that is late is for the next lookup, and what came in time counts."""

from __future__ import annotations

import asyncio

from service.tiers.io_worker.job import JobEnd
from service.tiers.traffic import late_answers
from service.tiers.traffic.asking import Asking, AskJob, Found
from tests.fakes.clock import Clock

NAMES = [b"%d" % number for number in range(6)]
THERE = [1, 1, 0, 1, 0, 0]


class Asked:
    """Questions, and the job that an I/O worker took last."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.asking = Asking(lambda: None, self.clock)

    def take(self) -> AskJob:
        job = self.asking.take()
        assert job is not None
        return job

    async def late(self) -> AskJob:
        """Ask for all names, and give up. Return the job that is not answered yet."""
        asking = asyncio.create_task(self.asking.ask(NAMES, 0.01))
        await asyncio.sleep(0)
        job = self.take()
        assert await asking == Found([False] * len(NAMES), is_late=True)
        return job


async def test_a_late_answer_serves_the_next_lookup_without_a_question() -> None:
    asked = Asked()
    job = await asked.late()
    job.on_end(JobEnd.DONE, "", THERE)
    assert await asked.asking.ask(NAMES, 0.0) == Found(list(map(bool, THERE)))
    assert asked.asking.take() is None


async def test_an_old_answer_is_forgotten_sooner_where_the_tier_had_nothing() -> None:
    asked = Asked()
    (await asked.late()).on_end(JobEnd.DONE, "", THERE)
    asked.clock.advance(late_answers.ABSENT_SECONDS)
    asking = asyncio.create_task(asked.asking.ask(NAMES, 10.0))
    await asyncio.sleep(0)
    job = asked.take()
    assert job.num_parts == THERE.count(0)
    job.on_end(JobEnd.DONE, "", [1, 0, 0])
    assert (await asking).found == [True, True, True, True, False, False]
    asked.clock.advance(late_answers.THERE_SECONDS)
    asking = asyncio.create_task(asked.asking.ask(NAMES, 10.0))
    await asyncio.sleep(0)
    assert asked.take().num_parts == len(NAMES)
    asking.cancel()


async def test_what_came_in_time_counts_though_the_rest_is_late() -> None:
    asked = Asked()
    asked.asking.max_names = 3
    asking = asyncio.create_task(asked.asking.ask(NAMES, 0.05))
    await asyncio.sleep(0)
    first, second = asked.take(), asked.take()
    first.on_end(JobEnd.DONE, "", THERE[:3])
    assert await asking == Found([True, True, False, False, False, False], is_late=True)
    second.on_end(JobEnd.DONE, "", THERE[3:])
    asked.asking.max_names = 6
    again = asyncio.create_task(asked.asking.ask(NAMES, 10.0))
    await asyncio.sleep(0)
    job = asked.take()
    assert job.num_parts == 3, "what was in time is asked again, what was late is not"
    job.on_end(JobEnd.DONE, "", THERE[:3])
    assert await again == Found(list(map(bool, THERE)))


async def test_a_job_that_fails_late_says_nothing() -> None:
    asked = Asked()
    (await asked.late()).on_end(JobEnd.REFUSED, "refused", [])
    asking = asyncio.create_task(asked.asking.ask(NAMES, 10.0))
    await asyncio.sleep(0)
    asked.take().on_end(JobEnd.REFUSED, "refused", [])
    assert await asking == Found(None)


def test_late_answers_are_bounded() -> None:
    clock = Clock()
    answers = late_answers.LateAnswers(clock)
    names = [b"%d" % number for number in range(late_answers.MAX_NAMES + 5)]
    answers.note(names, [1] * len(names))
    assert len(answers) == late_answers.MAX_NAMES
    assert (answers.get(names[0]), answers.get(names[-1])) == (None, True)

"""Asks the depot's event loop from the thread of HTTP, with a limit on time and on questions, and keeps the answers."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

TIMEOUT_SECONDS = 3.0
FRESH_SECONDS = 0.9  # pages ask once a second
MAX_ANSWERS = 64
MAX_QUESTIONS = 4  # that the depot works on at a time

Question = Callable[[], Awaitable[Callable[[], Any]]]


class DepotBusy(Exception):
    """The depot's event loop did not answer in time."""


@dataclass(slots=True)
class _Asked:
    answer: asyncio.Task[bytes]
    expires: float


class DepotLoop:
    """The depot's event loop, as the thread of HTTP sees it. Equal questions within a second have one answer.

    Its methods are for the loop of that thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked: OrderedDict[object, _Asked] = OrderedDict()
        self._free: asyncio.Semaphore | None = None

    async def ask(self, key: object, question: Question, fresh_seconds: float = FRESH_SECONDS) -> bytes:
        """Return the answer to a question as JSON. `key` is equal for equal questions of one tenant.

        Errors of the question are raised.

        Raises: DepotBusy.
        """
        now = monotonic()
        asked = self._asked.get(key)
        if asked is None or asked.expires <= now:
            asked = self._asked[key] = _Asked(asyncio.create_task(self._answer(question)), now + fresh_seconds)
            self._asked.move_to_end(key)
            while len(self._asked) > MAX_ANSWERS:
                self._asked.popitem(last=False)
        return await asyncio.shield(asked.answer)  # others may wait for it too

    async def _answer(self, question: Question) -> bytes:
        if self._free is None:
            self._free = asyncio.Semaphore(MAX_QUESTIONS)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._free:
                answer = await self._on_depots_loop(question)
        except TimeoutError as error:
            raise DepotBusy("the depot does not answer: it is very busy, or it shuts down") from error
        return json.dumps(answer(), separators=(",", ":")).encode()

    async def _on_depots_loop(self, question: Question) -> Callable[[], Any]:
        calling = _called(question)
        try:
            answering = asyncio.run_coroutine_threadsafe(calling, self.loop)
        except RuntimeError as error:  # the loop is closed
            calling.close()
            raise DepotBusy("the depot has shut down") from error
        return await asyncio.wrap_future(answering)


async def _called(question: Question) -> Callable[[], Any]:
    return await question()

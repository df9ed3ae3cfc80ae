"""Questions to a remote tier: what several lookups ask at a time goes to it in one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import Message, ProtocolBroken, Verb

ASK_SECONDS = 0.5
"""An I/O worker that needs longer is killed. Lookups wait for a shorter time."""
MAX_NAMES = 4_096

Answered = Sequence[int] | None
"""1 or 0 for each name. None: the tier failed."""


class Question:
    """Names that one lookup asks for. `answer` gets what the tier says."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = names
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()


class AskJob:
    """Some questions in one batch."""

    verb = Verb.EXISTS
    seconds = ASK_SECONDS
    failure = ""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self.num_parts = sum(len(question.names) for question in questions)

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return {"verb": self.verb, "names": [name.hex() for question in self._questions for name in question.names]}

    def on_reply(self, reply: Message) -> None:
        """Refuse the reply: see `Job`."""
        raise ProtocolBroken("a question has no parts")

    def on_blob(self, blob: bytes) -> None:
        """Refuse the blob: see `Job`."""
        raise ProtocolBroken("a question has no blobs")

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Answer the questions: see `Job`."""
        if end is JobEnd.DONE and len(result) != self.num_parts:
            raise ProtocolBroken(f"{len(result)} answers for {self.num_parts} names")
        first = 0
        for question in self._questions:
            some = result[first : first + len(question.names)]
            first += len(question.names)
            if not question.answer.done():
                question.answer.set_result(some if end is JobEnd.DONE else None)


class Asking:
    """Questions that wait for an I/O worker. `wake` is called when there is a new one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[Question] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, names: Sequence[bytes], timeout_seconds: float) -> Answered:
        """Return what the tier has.

        Raises: TimeoutError.
        """
        question = Question(names)
        self._waiting.append(question)
        self._wake()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await question.answer
        finally:  # an answer that is late is dropped
            question.answer.cancel()

    def take(self) -> AskJob | None:
        """Return the next job. Questions that nobody waits for any more are dropped."""
        questions: list[Question] = []
        num_names = 0
        while self._waiting and num_names < MAX_NAMES:
            question = self._waiting.popleft()
            if not question.answer.done():
                questions.append(question)
                num_names += len(question.names)
        return AskJob(questions) if questions else None

    def fail_all(self) -> None:
        """Answer all questions that wait: the tier failed."""
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_result(None)

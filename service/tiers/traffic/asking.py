"""Questions to a remote tier: what several lookups ask at a time goes to it in one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import Message, ProtocolBroken, Verb
from service.tiers.traffic.late_answers import LateAnswers

ASK_SECONDS = 0.5
"""An I/O worker that needs longer is killed. Lookups wait for a shorter time."""
JOB_SECONDS = 0.05
"""What one job should take: some stores need a request for each name."""
FIRST_NAMES = 256
MIN_NAMES = 32
MAX_NAMES = 4_096
WEIGHT = 0.2
"""Of a new measurement."""

Answered = Sequence[int] | None
"""1 or 0 for each name. None: the tier failed."""


class Found(NamedTuple):
    """What a tier says. `found` has an element for each name; None: the tier failed.

    If `is_late`, some answers did not come in time. These names count as absent for now.
    """

    found: Sequence[bool] | None
    is_late: bool = False


class Question:
    """Names that one lookup asks for. `answer` gets what the tier says, once all jobs with some of them have ended."""

    def __init__(self, names: Sequence[bytes]) -> None:
        self.names = names
        self.num_taken = 0
        self.answer: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self.found = [0] * len(names)
        self._num_answered = 0

    def take(self, max_names: int) -> Piece:
        """Take the next names."""
        first = self.num_taken
        self.num_taken = min(len(self.names), first + max_names)
        return Piece(self, first, self.names[first : self.num_taken])

    def note(self, first: int, found: Answered, num_names: int) -> None:
        """Note the answer for some names."""
        if self.answer.done():
            return
        if found is None:
            self.answer.set_result(None)
            return
        self.found[first : first + num_names] = found
        self._num_answered += num_names
        if self._num_answered == len(self.names):
            self.answer.set_result(self.found)


class Piece(NamedTuple):
    """Some names of a question, from its name number `first` on."""

    question: Question
    first: int
    names: Sequence[bytes]


class AskJob:
    """Names of some questions in one batch."""

    verb = Verb.EXISTS
    seconds = ASK_SECONDS
    failure = ""

    def __init__(self, asking: Asking, pieces: Sequence[Piece]) -> None:
        self.num_parts = sum(len(piece.names) for piece in pieces)
        self._asking = asking
        self._pieces = pieces
        self._start = asking.clock()

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return {"verb": self.verb, "names": [name.hex() for piece in self._pieces for name in piece.names]}

    def on_reply(self, reply: Message) -> None:
        """Refuse the reply: see `Job`."""
        raise ProtocolBroken("a question has no parts")

    def on_blob(self, blob: bytes) -> None:
        """Refuse the blob: see `Job`."""
        raise ProtocolBroken("a question has no blobs")

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Answer the questions: see `Job`."""
        is_done = end is JobEnd.DONE
        if is_done and len(result) != self.num_parts:
            raise ProtocolBroken(f"{len(result)} answers for {self.num_parts} names")
        if is_done:
            self._asking.note_job(self.num_parts, self._asking.clock() - self._start)
        begin = 0
        for question, first, names in self._pieces:
            end_of_piece = begin + len(names)
            if is_done and question.answer.done():  # the lookup has given up
                self._asking.late.note(names, result[begin:end_of_piece])
            question.note(first, result[begin:end_of_piece] if is_done else None, len(names))
            begin = end_of_piece


class Asking:
    """Questions that wait for an I/O worker. `wake` is called when there is a new one. `clock` is in seconds."""

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.late = LateAnswers(clock)
        self.max_names = FIRST_NAMES
        """The names of one job: as many as the tier has answered in `JOB_SECONDS`, on the average."""
        self._wake = wake
        self._waiting: deque[Question] = deque()
        self._names = self._seconds = 0.0  # averages of jobs

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, names: Sequence[bytes], timeout_seconds: float) -> Found:
        """Return what the tier has, within the timeout. An answer that comes later is for the next lookup."""
        known = [self.late.get(name) for name in names]
        question = Question([name for name, is_there in zip(names, known, strict=True) if is_there is None])
        answered: Answered = ()
        is_late = False
        if question.names:
            self._waiting.append(question)
            self._wake()
            try:
                async with asyncio.timeout(timeout_seconds):
                    answered = await question.answer
            except TimeoutError:
                answered, is_late = question.found, True
            finally:
                question.answer.cancel()
        if answered is None:
            return Found(None)
        answers = iter(answered)
        return Found([bool(next(answers)) if is_there is None else is_there for is_there in known], is_late)

    def take(self) -> AskJob | None:
        """Return the next job. Questions that nobody waits for any more are dropped."""
        pieces: list[Piece] = []
        left = self.max_names
        while self._waiting and left:
            question = self._waiting[0]
            if not question.answer.done():
                piece = question.take(left)
                pieces.append(piece)
                left -= len(piece.names)
            if question.answer.done() or question.num_taken == len(question.names):
                self._waiting.popleft()
        return AskJob(self, pieces) if pieces else None

    def note_job(self, num_names: int, seconds: float) -> None:
        """Note how long names took."""
        weight = WEIGHT if self._names else 1.0
        self._names += weight * (num_names - self._names)
        self._seconds += weight * (seconds - self._seconds)
        per_job = JOB_SECONDS * self._names / max(self._seconds, 1e-6)
        self.max_names = int(max(MIN_NAMES, min(per_job, MAX_NAMES)))

    def fail_all(self) -> None:
        """Answer all questions that wait: the tier failed."""
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_result(None)

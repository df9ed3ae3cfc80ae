"""The depot of each request of a trace, chosen when the request begins, with a certain knowledge of the depots."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from examples.router.index import Prompt
from examples.router.reader import Change
from examples.router.router import Router
from kvdepot.cli.processes import ChildFailed
from kvdepot.cli.request_trace import Trace, token_ids

ANSWER_SECONDS = 30.0
LATEST_SECONDS = 1.0
"""How long the events of a request are waited for before the next request is sent."""


class Routes:
    """Chooses the depot of each request of a trace when it begins, one after the other.

    By then `heard` knows all that the requests before stored, however slow this machine is. `router` gets to know it
    `late_requests` requests later. Without a delay they are the same.
    """

    def __init__(
        self, trace: Trace, heard: Router, router: Router, late_requests: int, changes: queue.Queue[Change]
    ) -> None:
        self._trace = trace
        self._heard = heard
        self._router = router
        self._late_requests = late_requests
        self._changes = changes
        self._late: deque[tuple[int, Change]] = deque()
        self.chosen: list[int] = []
        self.expected_tokens = 0
        self.num_unheard = 0

    def wait_for_depots(self, num_depots: int) -> None:
        """Wait until all depots answer.

        Raises: ChildFailed.
        """
        if not self._hear_until(lambda: self._heard.num_answering == num_depots, ANSWER_SECONDS):
            raise ChildFailed(f"not all depots tell their events after {ANSWER_SECONDS:g} s: {self._heard!r}")

    def __iter__(self) -> Iterator[int]:
        for prompt, output in zip(self._trace.requests, self._trace.outputs, strict=True):
            while self._late and self._late[0][0] <= len(self.chosen):
                self._router.apply(self._late.popleft()[1])
            asked = Prompt(token_ids(prompt, self._trace.block_tokens))
            stored = Prompt(token_ids(prompt + output, self._trace.block_tokens)) if output else asked
            route = self._router.route(asked)
            self.expected_tokens += route.expected.tokens
            self.chosen.append(route.depot)
            yield route.depot
            if not self._hear_until(lambda: self._has(route.depot, stored), LATEST_SECONDS):  # noqa: B023 - called here
                self.num_unheard += 1

    def _has(self, depot: int, prompt: Prompt) -> bool:
        return self._heard.matches(prompt)[depot].tokens == len(prompt)

    def _hear_until(self, is_so: Callable[[], bool], timeout_seconds: float) -> bool:
        """Take in what the depots tell until something is so. Return False if it is not so in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            with suppress(queue.Empty):
                while True:
                    self._hear(self._changes.get_nowait())
            if is_so():
                return True
            try:
                self._hear(self._changes.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                return False

    def _hear(self, change: Change) -> None:
        self._heard.apply(change)
        if self._router is not self._heard:
            self._late.append((len(self.chosen) + self._late_requests, change))

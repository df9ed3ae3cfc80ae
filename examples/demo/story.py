"""What has happened in the demo so far, as plain values that a screen can draw at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Facts = Mapping[str, Any]


@dataclass(kw_only=True)
class Course:
    """One way to an answer. ``first_token_seconds`` is None until the first token is there."""

    start: float | None = None
    first_token_seconds: float | None = None
    tokens: list[int] = field(default_factory=list)

    def seconds(self, now: float) -> float:
        """Return how long the first token took, or how long it has been awaited."""
        if self.start is None:
            return 0.0
        return now - self.start if self.first_token_seconds is None else self.first_token_seconds


@dataclass(kw_only=True)
class Step:
    """One thing that the demo does. ``seconds`` is None while it is being done."""

    text: str
    start: float = field(default_factory=time.monotonic)
    seconds: float | None = None


@dataclass(kw_only=True)
class EngineRun:
    """What one engine has said: the facts of the last event of each name."""

    facts: dict[str, Facts] = field(default_factory=dict)

    @property
    def prompt_tokens(self) -> int:
        """The tokens of its prompt."""
        return int(self.facts["started"]["prompt_tokens"])


class Story:
    """The demo from its begin. It takes the events of the engines, and keeps what a person wants to see.

    ``on_step`` gets each step at its end.
    """

    def __init__(self, on_step: Callable[[Step], None] = lambda step: None) -> None:
        self._on_step = on_step
        self.steps: list[Step] = []
        self.engines: dict[str, EngineRun] = {}
        self.with_depot = Course()
        self.without_depot = Course()

    def __repr__(self) -> str:
        return f"<Story, {len(self.steps)} steps, engines {', '.join(self.engines)}>"

    @property
    def expected_seconds(self) -> float:
        """About how long the answer takes without the depot: as long as it took engine A. 0: not known yet."""
        first = self.engines.get("a")
        return float(first.facts["answered"]["seconds"]["first_token"]) if first and "answered" in first.facts else 0.0

    @property
    def compared(self) -> Facts | None:
        """How the two answers compare. None: they are not there yet."""
        second = self.engines.get("b")
        return second.facts.get("compared") if second else None

    @property
    def is_identical(self) -> bool:
        """Whether engine B used the depot, and answered the same with and without it."""
        compared = self.compared
        return (
            compared is not None
            and bool(compared["identical"])
            and self.engines["b"].facts["answered"]["matched_tokens"] > 0
        )

    def begin(self, text: str) -> None:
        """End the step that is being done, and begin one."""
        self.end_step()
        self.steps.append(Step(text=text))

    def end_step(self) -> None:
        """End the step that is being done."""
        if self.steps and self.steps[-1].seconds is None:
            self.steps[-1].seconds = time.monotonic() - self.steps[-1].start
            self._on_step(self.steps[-1])

    def starts(self, engine: str) -> None:
        """Take the start of an engine's process."""
        self.engines[engine] = EngineRun()
        self.begin(f"engine {engine.upper()} starts")

    def takes(self, engine: str, event: str, facts: Facts) -> None:
        """Take an event of an engine."""
        run = self.engines[engine]
        run.facts[event] = facts
        if event == "asked":
            self._asked(engine, run)
        elif event == "prefilled":
            self.steps[-1].text = self._doing(engine, run, int(facts["num_tokens"]))
        elif event == "token" and engine == "b":
            self._token(self._course(run), int(facts["token"]))
        elif event == "answered":
            self._answered(engine, run)
        elif event == "compared":
            self.without_depot.first_token_seconds = float(facts["seconds"]["first_token"])
            self.end_step()

    def _asked(self, engine: str, run: EngineRun) -> None:
        self.begin(self._doing(engine, run, 0))
        if engine == "b":
            self._course(run).start = time.monotonic()

    def _course(self, run: EngineRun) -> Course:
        return self.without_depot if "answered" in run.facts else self.with_depot

    @staticmethod
    def _doing(engine: str, run: EngineRun, num_done: int) -> str:
        done = f"{num_done:,} of {run.prompt_tokens:,} tokens"
        if engine == "a":
            return f"engine A computes {done}"
        if "answered" in run.facts:
            return f"engine B without the depot computes {done}"
        found = int(run.facts["found"]["num_tokens"]) if "found" in run.facts else 0
        return f"engine B finds {found:,} of {run.prompt_tokens:,} tokens, and computes the rest"

    @staticmethod
    def _token(course: Course, token: int) -> None:
        if course.first_token_seconds is None and course.start is not None:
            course.first_token_seconds = time.monotonic() - course.start
        course.tokens.append(token)

    def _answered(self, engine: str, run: EngineRun) -> None:
        answered = run.facts["answered"]
        if engine == "a":
            done = f"engine A has computed {run.prompt_tokens:,} tokens, and stored {answered['stored_tokens']:,}"
            self.steps[-1].text = done
        else:
            self.with_depot.first_token_seconds = float(answered["seconds"]["first_token"])
        self.end_step()

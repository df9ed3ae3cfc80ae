"""How the demo looks in a terminal: while it runs, and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from examples.demo.story import Course, Facts, Step, Story
from kvdepot.cli.terminal import printable

_MAX_WIDTH = 100
_LABEL_WIDTH = len("without the depot  ")
_SECONDS_WIDTH = len(" 00.00 s")
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FRAMES_PER_SECOND = 12

TextOf = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Screen:
    """Draws a story. ``text_of`` makes words of tokens."""

    console: Console
    question: str
    text_of: TextOf

    @property
    def width(self) -> int:
        """Columns that are used."""
        return min(self.console.width, _MAX_WIDTH)

    @contextmanager
    def live(self, story: Story) -> Iterator[None]:
        """Draw the story while the block runs: again and again in a terminal, else a line for each step at its end."""
        if self.console.is_terminal:
            with Live(
                get_renderable=lambda: self.running(story, time.monotonic()),
                console=self.console,
                refresh_per_second=_FRAMES_PER_SECOND,
                transient=True,
            ):
                yield
        else:
            yield

    def print_step(self, step: Step) -> None:
        """Print a step that has ended, where there is no terminal to draw in."""
        if not self.console.is_terminal:
            self.console.print(f"{step.text}: {step.seconds or 0:.1f} s", soft_wrap=True, highlight=False)

    def print_end(self, story: Story) -> None:
        """Print how the story ended: the headline first."""
        self.console.print(self._ended(story), highlight=False)

    def print_next(self, commands: Sequence[str]) -> None:
        """Print what to type next while the depot still runs."""
        self.console.print(Text("\nThe depot still runs. What to type next, in another terminal:", style="bold"))
        for command in commands:
            self.console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
        self.console.print(Text("Enter or Ctrl-C ends the depot.", style="bold"))

    def running(self, story: Story, now: float) -> RenderableType:
        """Return the story so far, as it is drawn at a moment of the monotonic clock."""
        lines: list[RenderableType] = [
            Text("Two engines are asked about one document. The second finds its KV in a depot.", style="bold"),
            Text(),
            *(self._step(step, now) for step in story.steps),
        ]
        if story.with_depot.start is not None:
            lines += [
                Text(),
                Text(f"Question: {self.question}"),
                Text(),
                *self._courses(story, now, story.expected_seconds, show_answers=True),
            ]
        return self._cut(lines)

    def _ended(self, story: Story) -> RenderableType:
        compared = story.compared
        assert compared is not None
        lines: list[RenderableType] = [
            self._headline(story),
            Text(),
            *self._courses(story, time.monotonic(), 0.0, show_answers=not story.is_identical),
        ]
        if story.is_identical:
            lines += [
                Text(),
                _labelled("question", self.question),
                _labelled("answer", self._answer(story.with_depot)),
                _labelled("", f"the same {len(compared['tokens'])} tokens with and without the depot", style="green"),
            ]
        return self._cut([*lines, Text(), *_facts(story, compared)])

    def _cut(self, lines: Sequence[RenderableType]) -> RenderableType:
        """Return the lines in the columns that are used."""
        return Constrain(Group(*lines), self.width)

    def _headline(self, story: Story) -> Text:
        quick, slow = story.with_depot.seconds(0), story.without_depot.seconds(0)
        if not story.engines["b"].facts["answered"]["matched_tokens"]:
            return Text("Engine B found nothing in the depot.", style="bold red")
        if not story.is_identical:
            return Text("The depot returned KV that engine B would not compute.", style="bold red")
        times = f"{_seconds(quick)} instead of {_seconds(slow)}"
        if quick >= slow:
            return Text(f"Engine B answered no sooner: {times}.", style="bold yellow")
        ratio = slow / quick
        sign = "x" if self.console.options.ascii_only else "×"
        return Text(f"Engine B answered {ratio:.{0 if ratio >= 10 else 1}f}{sign} sooner: {times}.", style="bold green")

    def _step(self, step: Step, now: float) -> RenderableType:
        is_done = step.seconds is not None
        seconds = f"{step.seconds if step.seconds is not None else now - step.start:.1f} s"
        line = Table.grid(expand=True)
        line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        line.add_column(justify="right", no_wrap=True)
        line.add_row(Text(f"{self._mark(is_done)} {step.text}", style="" if is_done else "cyan"), f" {seconds}")
        return line

    def _mark(self, is_done: bool) -> str:
        if self.console.options.ascii_only:
            return "+" if is_done else "-"
        return "✓" if is_done else "▸"

    def _courses(
        self, story: Story, now: float, expected_seconds: float, *, show_answers: bool
    ) -> Iterator[RenderableType]:
        """Yield a bar for each way to the answer, on one scale, which has room for the expected time."""
        courses = (
            ("with the depot", story.with_depot, "green"),
            ("without the depot", story.without_depot, "red"),
        )
        full_seconds = max(expected_seconds, *(course.seconds(now) for _, course, _ in courses), 1e-3)
        for label, course, style in courses:
            yield self._bar(label, course, style, now, full_seconds)
            if show_answers:
                yield Padding(Text(self._answer(course), style="italic", overflow="fold"), (0, 0, 1, 2))

    def _bar(self, label: str, course: Course, style: str, now: float, full_seconds: float) -> Text:
        if course.start is None:
            return Text(label, style="dim")
        seconds = course.seconds(now)
        columns = seconds / full_seconds * (self.width - _LABEL_WIDTH - _SECONDS_WIDTH)
        whole, rest = int(columns), int(columns % 1 * 8)
        bar = "#" * max(1, whole) if self.console.options.ascii_only else "█" * whole + _EIGHTHS[rest].strip()
        return Text.assemble(label.ljust(_LABEL_WIDTH), (bar or "▏", style), f" {_seconds(seconds)}")

    def _answer(self, course: Course) -> str:
        return printable(" ".join(self.text_of(course.tokens).split()))


def _facts(story: Story, compared: Facts) -> Iterator[RenderableType]:
    model, second = story.engines["b"].facts["attached"], story.engines["b"].facts["answered"]
    first = story.engines["a"].facts["answered"]
    num_prompt_tokens, num_matched_tokens = story.engines["b"].prompt_tokens, second["matched_tokens"]
    yield _labelled(
        "model", f"{model['description']}: {model['num_layers']} layers, {model['num_weights'] / 1e6:.1f} M weights"
    )
    yield _labelled("prompt", f"{num_prompt_tokens:,} tokens, {num_matched_tokens:,} of them matched in the depot")
    yield _labelled("stored", _moved(first["stored_bytes"], first["seconds"]["store"], "engine A"))
    yield _labelled("retrieved", _moved(second["retrieved_bytes"], second["seconds"].get("retrieve", 0.0), "engine B"))
    kv, logits = compared["max_kv_difference"], compared["max_logit_difference"]
    yield _labelled("differences", f"at most {kv:.3g} in the retrieved KV, {logits:.3g} in the logits")


def _labelled(label: str, text: str, style: str = "") -> Table:
    line = Table.grid()
    line.add_column(width=_LABEL_WIDTH, style="dim")
    line.add_column(overflow="fold")
    line.add_row(label, Text(text, style=style))
    return line


def _moved(num_bytes: int, seconds: float, engine: str) -> str:
    if not seconds or not num_bytes:
        return "nothing"
    rate = num_bytes / seconds / 1e9
    return f"{num_bytes / 1e6:,.1f} MB by {engine} in {seconds * 1e3:,.1f} ms, {rate:.1f} GB/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"

"""One showing of the demo: on a screen, from the begin until the person has seen enough."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import typer
from rich.console import Console

from examples.demo.choices import DecoderName
from examples.demo.play import Cast, play
from examples.demo.screen import Screen, TextOf
from examples.demo.story import Story
from examples.demo.text import QUESTIONS, text_of
from kvdepot.cli.processes import ChildFailed, exit_on_terminate
from kvdepot.cli.terminal import fail

_TEXT_OF: dict[DecoderName, TextOf] = {
    DecoderName.NUMPY: text_of,
    DecoderName.TRANSFORMERS: lambda tokens: f"tokens {' '.join(map(str, tokens))}",  # random weights know no words
}


def perform(cast: Cast) -> None:
    """Play the demo, and print how it went. In a terminal the depot then runs until Enter or Ctrl-C.

    Raises: typer.Exit, with 1 if the answers differ or a process failed, with 130 after Ctrl-C.
    """
    if cast.decoder is DecoderName.TRANSFORMERS and find_spec("transformers") is None:
        install = "run `make demo-transformers`, or pip install 'kvdepot[server,demo]'"
        fail(f"--decoder transformers needs transformers: {install}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode shows `?`
    screen = Screen(Console(), QUESTIONS["b"], _TEXT_OF[cast.decoder])
    story = Story(on_step=screen.print_step)
    waits = screen.console.is_terminal and sys.stdin.isatty()
    try:
        with exit_on_terminate(), ExitStack() as until_end:
            with screen.live(story):
                tcp = play(cast, story, until_end)
            if not screen.console.is_terminal:
                print()  # between the lines of the steps and the headline
            screen.print_end(story)
            if waits:
                screen.print_next(commands(tcp))
                _wait_for_enter()
    except ChildFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped", 130)
    if not story.is_identical:
        raise typer.Exit(1)


def commands(address: str) -> list[str]:
    """Return commands that show what the engines did, as they can be typed here."""
    command = _command()
    return [
        f"{command} {arguments} --address {address}"
        for arguments in ("status", "sessions", "sessions show engine-b request-1")
    ]


def _command() -> str:
    """Return how this Python's `kvdepot` is typed."""
    installed = Path(sys.executable).with_name("kvdepot")
    found = shutil.which("kvdepot")
    if found is not None and Path(found).resolve() == installed.resolve():
        return "kvdepot"
    typed, rest = (installed, "") if installed.exists() else (Path(sys.executable), " -m kvdepot")
    folder = Path.cwd()
    return f"{typed.relative_to(folder) if typed.is_relative_to(folder) else typed}{rest}"


def _wait_for_enter() -> None:
    """Wait for Enter, for the end of the input, or for Ctrl-C."""
    try:
        sys.stdin.readline()
    except KeyboardInterrupt:
        print()

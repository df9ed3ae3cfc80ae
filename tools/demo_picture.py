"""Plays the demo, and draws how it ends in a terminal: `python -m tools.demo_picture docs/pictures/demo.svg`."""

from __future__ import annotations

import io
import re
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.play import Cast, play
from examples.demo.screen import Screen
from examples.demo.stage import commands
from examples.demo.story import Story
from examples.demo.text import QUESTIONS, text_of
from kvdepot.cli.processes import exit_on_terminate

_OUTSIDE_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def picture() -> str:
    """Return the end of the demo as SVG. It fetches nothing when it is shown.

    Raises: ChildFailed.
    """
    cast = Cast(decoder=DecoderName.NUMPY, size=DemoSize.FULL, device=DemoDevice.CPU)
    console = Console(record=True, width=80, file=io.StringIO())
    screen, story = Screen(console, QUESTIONS["b"], text_of), Story()
    with exit_on_terminate(), ExitStack() as until_end:
        address = play(cast, story, until_end)
        screen.print_end(story)
        screen.print_next(commands(address))
    return _OUTSIDE_FONTS.sub("", console.export_svg(title="kvdepot demo"))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(picture(), encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")

"""`kvdepot demo`: two engines share a prompt through a real depot, and their answers are compared."""

from __future__ import annotations

from typing import Annotated

import typer

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from kvdepot.cli.terminal import fail


def demo(
    decoder: Annotated[DecoderName, typer.Option(help="The model that answers.")] = DecoderName.NUMPY,
    size: Annotated[DemoSize, typer.Option(help="How long the document is.")] = DemoSize.FULL,
    device: Annotated[DemoDevice, typer.Option(help="Where transformers computes, and has its KV.")] = DemoDevice.CPU,
) -> None:
    """Let two engines share a prompt through a depot, and compare the answers.

    Exits with 1 if the answers differ.
    """
    if device is DemoDevice.CUDA and decoder is DecoderName.NUMPY:
        fail("--device cuda needs --decoder transformers", 2)
    from examples.demo.play import Cast  # the other commands start quicker without these
    from examples.demo.stage import perform

    perform(Cast(decoder=decoder, size=size, device=device))

"""The output of commands: text from the wire, sizes, JSON, and the error that ends a command."""

from __future__ import annotations

from typing import NoReturn

import typer
from google.protobuf.message import Message


def printable(text: str) -> str:
    """Return the text with escapes for control characters and for characters that a terminal does not show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def readable_size(num_bytes: int) -> str:
    """Return a size for people, in powers of 1024, rounded."""
    size, units = float(num_bytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.4g} {unit}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as in "1 chunk" and "2 chunks"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def as_json(message: Message) -> object:
    """Return a message as JSON's values, under the names of the .proto files."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_text(text: str) -> None:
    """Print lines, wrapped between words in a terminal and as they are elsewhere."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(text, soft_wrap=not console.is_terminal)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """Print an error and end the command.

    Raises: typer.Exit.
    """
    from rich.console import Console  # only a command that fails needs it

    lines = "\n".join(map(printable, message.splitlines()))
    Console(stderr=True).print(f"error: {lines}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code)

"""Text from the wire, as a terminal may show it."""

from __future__ import annotations


def printable(text: str) -> str:
    """With escapes in the place of what a terminal would obey or not show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def readable_size(num_bytes: int) -> str:
    """As people read it, in powers of 1024, rounded."""
    size, units = float(num_bytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.4g} {unit}"

"""Text from the wire, as a terminal may show it."""

from __future__ import annotations


def printable(text: str) -> str:
    """With escapes in the place of what a terminal would obey or not show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )

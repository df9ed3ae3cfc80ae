"""The text of the demo: its document, its questions, and the tokens of a text, which are its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
DOCUMENT = (FOLDER / "document.md").read_text(encoding="utf-8")
QUESTIONS = {"a": "What is a lease?", "b": "Why is no prompt prefilled twice?"}
"""What each engine is asked about the document."""

END = 256
"""The token after the last byte of an answer."""

VOCABULARY_SIZE = 257


def tokenize(text: str) -> list[int]:
    """Return the token ids of a text: its bytes."""
    return list(text.encode())


def text_of(tokens: Sequence[int]) -> str:
    """Return the text of tokens. Bytes that are no UTF-8 become `�`."""
    return bytes(token for token in tokens if token < END).decode(errors="replace")


def prompt_of(question: str) -> str:
    """Return a question in the form that the model has learnt. The answer begins with a space."""
    return f"\n\nQuestion: {question}\nAnswer:"

"""A prompt, read from a file or standard input: token ids as a JSON list or as numbers, or block hashes in hex."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from kvdepot.wire import MAX_ID

MAX_TOKENS = 4_194_304  # of a request, as the API says
STANDARD_INPUT = "-"

_DIGITS = re.compile(r"[0-9]{1,10}")
_NAMES = ("token_ids", "prompt_token_ids", "block_hashes")
_BETWEEN = re.compile(r"[\s,]+")


class BadPrompt(ValueError):
    """The text has no token ids, or something else. The message has one line."""


def read_text(path: str) -> str:
    """Return the text in a file; `-` is standard input.

    Raises: BadPrompt, OSError.
    """
    try:
        return (sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise BadPrompt("it is no text") from error


def block_hashes(text: str) -> list[bytes]:
    """Return the block hashes in a text: a JSON list of hex numbers, or hex numbers with spaces between them.

    Raises: BadPrompt.
    """
    return [_hash(position, value) for position, value in enumerate(_items(text, "block hashes in hex"))]


def token_ids(text: str) -> list[int]:
    """Return the token ids in a text.

    Raises: BadPrompt.
    """
    return [_token_id(position, value) for position, value in enumerate(_items(text, "token ids"))]


def _items(text: str, what: str) -> list[object]:
    text = text.strip()
    if not text:
        raise BadPrompt(f"it is empty; a JSON list of {what}, or {what} with spaces between them, are expected")
    found: list[object] = _of_json(text, what) if text[0] in "[{" else [*_BETWEEN.split(text)]
    if len(found) > MAX_TOKENS:
        raise BadPrompt(f"it has {len(found):,} {what}; {MAX_TOKENS:,} are the most")
    return found


def _of_json(text: str, what: str) -> list[object]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadPrompt(f"it is not JSON: {error}") from error
    if isinstance(value, dict):  # as many tools write it
        value = next((value[name] for name in _NAMES if name in value), None)
    if not isinstance(value, list) or not value:
        raise BadPrompt(f"it has no JSON list of {what}")
    return value


def _hash(position: int, value: object) -> bytes:
    try:
        return bytes.fromhex(value.removeprefix("0x") if isinstance(value, str) else "no hash")
    except ValueError as error:
        raise BadPrompt(f"hash {position:,} is {value!s:.40}; a hash is an even number of hex digits") from error


def _token_id(position: int, value: object) -> int:
    number = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _DIGITS.fullmatch(value):
        number = int(value)
    if not 0 <= number <= MAX_ID:
        raise BadPrompt(f"token {position:,} is {value!s:.40}; a token id is a number from 0 to {MAX_ID:,}")
    return number

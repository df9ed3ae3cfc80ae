"""The token ids of a prompt, read from a file or standard input: a JSON list, or numbers with spaces between them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from kvdepot.wire import MAX_ID

MAX_TOKENS = 4_194_304  # of a request, as the API says
STANDARD_INPUT = "-"

_DIGITS = re.compile(r"[0-9]{1,10}")
_BETWEEN = re.compile(r"[\s,]+")


class BadPrompt(ValueError):
    """The text has no token ids, or something else. The message has one line."""


def read_prompt(path: str) -> list[int]:
    """Return the token ids in a file; `-` is standard input.

    Raises: BadPrompt, OSError.
    """
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadPrompt("it is no text") from error
    return token_ids(text)


def token_ids(text: str) -> list[int]:
    """Return the token ids in a text.

    Raises: BadPrompt.
    """
    text = text.strip()
    if not text:
        raise BadPrompt("it is empty; a JSON list of token ids, or numbers with spaces between them, are expected")
    found = _of_json(text) if text[0] in "[{" else _BETWEEN.split(text)
    if len(found) > MAX_TOKENS:
        raise BadPrompt(f"it has {len(found):,} tokens; {MAX_TOKENS:,} are the most")
    return [_token_id(position, value) for position, value in enumerate(found)]


def _of_json(text: str) -> list[object]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadPrompt(f"it is not JSON: {error}") from error
    if isinstance(value, dict):  # as many tools write it
        value = value.get("token_ids", value.get("prompt_token_ids"))
    if not isinstance(value, list) or not value:
        raise BadPrompt("it has no JSON list of token ids")
    return value


def _token_id(position: int, value: object) -> int:
    number = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and _DIGITS.fullmatch(value):
        number = int(value)
    if not 0 <= number <= MAX_ID:
        raise BadPrompt(f"token {position:,} is {value!s:.40}; a token id is a number from 0 to {MAX_ID:,}")
    return number

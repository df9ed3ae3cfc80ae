"""The types of settings: sizes and durations as text, several texts, names of kinds."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from service.units import DURATION_PATTERN, SIZE_PATTERN, parse_duration, parse_size


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class KvEventsFormat(StrEnum):
    """The format of KV events."""

    MAP = "map"
    ARRAY = "array"


class KvEventsHashes(StrEnum):
    """The hashes of blocks in KV events."""

    INT = "int"
    BYTES = "bytes"


def zeromq_address(value: str) -> str:
    """Return an address of ZeroMQ, or the empty text.

    Raises: ValueError.
    """
    scheme, _, rest = value.partition("://")
    host, _, port = rest.rpartition(":")
    is_tcp = scheme == "tcp" and bool(host) and port.isdecimal() and int(port) <= 65_535
    if value and not is_tcp and not (scheme == "ipc" and rest):
        raise ValueError(f"{value!r} is neither tcp://HOST:PORT, such as tcp://*:5557, nor ipc://PATH")
    return value


def split(value: object) -> object:
    """Split a text at its commas."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def one_or_list(value: object) -> object:
    """Split a variable: it holds one text, or a JSON array of texts, because the texts contain commas."""
    if not isinstance(value, str):
        return value
    if not value.startswith("["):
        return (value,) if value else ()
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"a value that begins with [ has to be a JSON array: {error}") from error


SizeText = Annotated[str, Field(pattern=SIZE_PATTERN)]
DurationText = Annotated[str, Field(pattern=DURATION_PATTERN)]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | SizeText)]
Seconds = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=float | DurationText)]
Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]
OneOrList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(one_or_list)]
ZeromqAddress = Annotated[str, AfterValidator(zeromq_address)]

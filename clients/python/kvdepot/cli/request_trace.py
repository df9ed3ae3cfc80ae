"""A trace of requests in Mooncake's format: the blocks that each prompt is made of.

Each line is a JSON object. `hash_ids` has one id per block of the prompt. An id stands for its block and for all blocks
before it, so that equal ids mean equal prefixes. A block has 512 tokens, see https://github.com/kvcache-ai/Mooncake.

A depot that records its requests (`kvdepot serve --record-trace`) adds fields. `block_tokens` says how many tokens a
block has. The last block of such a prompt may be shorter, and no depot keeps it, so it is left out here.
`output_hash_ids` has the blocks that the request stored behind its prompt. Ids of different `recording`s have nothing
in common.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_TOKENS = 512
MAX_BLOCK_TOKENS = 1 << 20
VOCABULARY_SIZE = 128_000
"""Token ids are below this, as in a real model. The two that spell a block's id may be larger."""
MAX_HASH_ID = 2**62 - 1
MAX_RECORDED_ID = 2**40 - 1
MAX_RECORDINGS = 1 << 20

HashIds = tuple[int, ...]


class BadTrace(ValueError):
    """A line that is not a request, which the message names, or a file without requests."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace, in order. `outputs[request]` has the blocks that it stored behind its prompt."""

    requests: list[HashIds]
    outputs: list[HashIds]
    block_tokens: int = BLOCK_TOKENS


def read_trace(path: Path, max_requests: int | None = None, model: int | None = None) -> Trace:
    """Return the block ids of every request, in order. `model` leaves out those of other models of a recording.

    Raises: BadTrace, OSError.
    """
    reader = _Reader(model)
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if max_requests is not None and len(reader.requests) >= max_requests:
                    break
                if line.strip():
                    reader.read(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path}: not a text file: {error}") from error
    if not reader.requests:
        of_model = f" of model {model}" if model is not None else ""
        raise BadTrace(f"{path}: no requests{of_model} in it")
    return Trace(reader.requests, reader.outputs, reader.block_tokens)


class _Reader:
    """Reads the lines of one trace, those of one `model` if that is given. All of these have the same block size."""

    def __init__(self, model: int | None) -> None:
        self._model = model
        self.requests: list[HashIds] = []
        self.outputs: list[HashIds] = []
        self.block_tokens = BLOCK_TOKENS
        self._recordings: dict[str, int] = {}

    def read(self, line: str, where: str) -> None:
        """Add the request of a line.

        Raises: BadTrace.
        """
        try:
            request = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadTrace(f"{where}: not JSON: {error}") from error
        if not isinstance(request, dict):
            raise BadTrace(f'{where}: expected an object with a list "hash_ids"')
        if self._model is not None and request.get("model") != self._model:
            return
        block_tokens = _integer(request, "block_tokens", BLOCK_TOKENS, range(2, MAX_BLOCK_TOKENS + 1), where)
        if not self.requests:
            self.block_tokens = block_tokens
        elif block_tokens != self.block_tokens:
            raise BadTrace(
                f"{where}: blocks of {block_tokens} tokens, after blocks of {self.block_tokens} tokens: "
                "choose one model with --model"
            )
        first_id = self._first_id(request, where)
        max_id = MAX_HASH_ID if first_id is None else MAX_RECORDED_ID
        prompt = _ids(request, "hash_ids", max_id, where)
        output = _ids(request, "output_hash_ids", max_id, where) if "output_hash_ids" in request else ()
        if "block_tokens" in request and "input_length" in request:
            num_tokens = _integer(request, "input_length", 0, range(1 << 62), where)
            prompt = prompt[: num_tokens // block_tokens]
        self.requests.append(tuple([(first_id or 0) + each for each in prompt]))
        self.outputs.append(tuple([(first_id or 0) + each for each in output]))

    def _first_id(self, request: dict[str, Any], where: str) -> int | None:
        """Return what the id 0 of the line's recording becomes, so that recordings share no ids. None: it has none."""
        recording = request.get("recording")
        if recording is None:
            return None
        if not isinstance(recording, str):
            raise BadTrace(f'{where}: "recording" is not a text')
        number = self._recordings.setdefault(recording, len(self._recordings))
        if number >= MAX_RECORDINGS:
            raise BadTrace(f"{where}: more than {MAX_RECORDINGS:,} recordings")
        return number * (MAX_RECORDED_ID + 1)


def _ids(request: dict[str, Any], name: str, max_id: int, where: str) -> HashIds:
    hash_ids = request.get(name)
    if not isinstance(hash_ids, list):
        raise BadTrace(f'{where}: expected an object with a list "{name}"')
    for hash_id in hash_ids:
        if type(hash_id) is not int or not 0 <= hash_id <= max_id:
            limit = (max_id + 1).bit_length() - 1
            raise BadTrace(f"{where}: {hash_id!r} in {name} is not an integer from 0 to 2^{limit} - 1")
    return tuple(hash_ids)


def _integer(request: dict[str, Any], name: str, default: int, allowed: range, where: str) -> int:
    value = request.get(name, default)
    if type(value) is not int or value not in allowed:
        raise BadTrace(f"{where}: {name} is {value!r}, not an integer from {allowed[0]} to {allowed[-1]}")
    return value


def token_ids(hash_ids: HashIds, block_tokens: int = BLOCK_TOKENS) -> list[int]:
    """Return the token ids of a prompt: `block_tokens` for each block, at least two, which differ for different ids.

    The first two tokens of a block spell its id, the others only fill it.
    """
    ids = np.array(hash_ids, dtype=np.int64)[:, np.newaxis]
    tokens = (ids * 31 + np.arange(block_tokens, dtype=np.int64) * 7919) % VOCABULARY_SIZE
    tokens[:, :1] = ids & 0x7FFF_FFFF
    tokens[:, 1:2] = ids >> 31
    flat: list[int] = tokens.ravel().tolist()
    return flat

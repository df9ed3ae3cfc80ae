"""Requests on their way into a recording: a line each, in the order of their lookups.

A line has `timestamp` (ms since the recording began), `input_length` and `output_length` (tokens), and `hash_ids`, one
for each block of the prompt, as in Mooncake's traces. `block_tokens` says how many tokens a block has. The last one may
be shorter. `output_hash_ids` has the whole blocks behind the prompt that the request stored.
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from blake3 import blake3

from service.depot.recording import LookedUp, RequestEnded, Seen, Stored
from service.l1.keys import Namespace, Prefix, chunk_keys
from service.recording.chunk_ids import ChunkIds

HOLD_SECONDS = 120.0
"""How long a line waits for the end of its request, and for those before it. Then it is written as it is."""
MAX_HELD_IDS = 1 << 20
"""The ids of all lines that wait, some 40 MB. With more, the first lines are written as they are."""
MAX_HELD = 1 << 16
MAX_BLOCKS = 1 << 16
"""Blocks of one request: 16 million tokens in blocks of 256. What a longer prompt has behind them is left out."""
MAX_NAMES = 1 << 12
BLOCKS_PER_STEP = 64  # a sixth of a millisecond


@dataclass(slots=True, eq=False)
class _OpenRequest:
    """A request without a line. `parent` is the key of the last whole block, or the namespace."""

    timestamp_seconds: float
    namespace: Namespace
    model: int
    tenant: int
    num_tokens: int = 0
    num_whole_blocks: int = 0
    end_tokens: int = 0
    parent: bytes = b""
    ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    is_over: bool = False


class OpenRequests:
    """The requests that have no line yet. `start` is when the recording began (monotonic seconds).

    Keys are computed with a salt that is never written, and only their ids leave this object.
    """

    def __init__(self, block_tokens: int, start: float, chunk_ids: ChunkIds | None = None) -> None:
        self._block_tokens = block_tokens
        self._start = start
        self._salt = secrets.token_bytes(32)
        self._recording = secrets.token_hex(4)
        self._chunk_ids = chunk_ids or ChunkIds()
        self._models = ChunkIds(MAX_NAMES)
        self._tenants = ChunkIds(MAX_NAMES)
        self._open: OrderedDict[int, _OpenRequest] = OrderedDict()
        self._num_held_ids = 0
        self._written: OrderedDict[int, None] = OrderedDict()  # before their end: they get no second line

    def __len__(self) -> int:
        return len(self._open)

    def __repr__(self) -> str:
        return f"<OpenRequests {len(self)} open, {self._num_held_ids} ids>"

    def take(self, seen: Seen) -> Iterator[None]:
        """Take what a depot saw, in short steps."""
        match seen:
            case LookedUp():
                if seen.request_before != seen.request:
                    self._end(seen.request_before)
                yield from self._look_up(seen)
            case Stored():
                yield from self._store(seen)
            case RequestEnded():
                self._end(seen.request)

    def lines(self, now: float) -> Iterator[str]:
        """Yield the lines that are due (`now` in monotonic seconds), each with its end of line."""
        while self._open:
            number, request = next(iter(self._open.items()))
            is_late = request.timestamp_seconds + HOLD_SECONDS <= now
            if not (request.is_over or is_late or self._num_held_ids > MAX_HELD_IDS or len(self._open) > MAX_HELD):
                return
            yield self._take_line(number, request)

    def all_lines(self) -> Iterator[str]:
        """Yield all lines, because the recording ends."""
        while self._open:
            yield self._take_line(*next(iter(self._open.items())))

    def next_due(self) -> float | None:
        """Return when the next line is due at the latest (monotonic seconds). None: there is none."""
        first = next(iter(self._open.values()), None)
        return first.timestamp_seconds + HOLD_SECONDS if first is not None else None

    def _look_up(self, seen: LookedUp) -> Iterator[None]:
        if seen.request in self._written:
            return
        request = self._open.get(seen.request)
        if request is None:
            request = self._open[seen.request] = _OpenRequest(
                seen.monotonic,
                seen.namespace,
                self._models.of(self._salted(seen.model_name.encode())),
                self._tenants.of(self._salted(seen.tenant.encode())),
            )
        elif seen.prefix.num_tokens <= request.num_tokens:
            return  # the engine asked once more
        self._num_held_ids -= len(request.ids)
        request.namespace = Namespace(self._salted(seen.namespace))
        yield from self._number(request, seen.prefix)
        self._num_held_ids += len(request.ids)

    def _number(self, request: _OpenRequest, prefix: Prefix) -> Iterator[None]:
        """Give the blocks of a prompt their ids."""
        request.num_tokens = request.end_tokens = min(prefix.num_tokens, MAX_BLOCKS * self._block_tokens)
        request.parent = request.namespace
        request.ids = []
        keys = islice(chunk_keys(request.namespace, prefix, self._block_tokens), MAX_BLOCKS)
        while some := list(islice(keys, BLOCKS_PER_STEP)):
            request.ids += map(self._chunk_ids.of, some)
            request.parent = some[-1]
            yield
        request.num_whole_blocks = len(request.ids)
        if request.num_tokens % self._block_tokens:
            request.ids.append(self._chunk_ids.of(_key_of_rest(request, prefix, self._block_tokens)))

    def _store(self, seen: Stored) -> Iterator[None]:
        request = self._open.get(seen.request)
        if request is None or seen.prefix.num_tokens <= request.end_tokens:
            return
        request.end_tokens = seen.prefix.num_tokens
        num_blocks = request.num_whole_blocks + len(request.output_ids)
        start, rest = _behind(request, seen.prefix, num_blocks, self._block_tokens)
        keys = islice(chunk_keys(start, rest, self._block_tokens), max(0, MAX_BLOCKS - num_blocks))
        while some := list(islice(keys, BLOCKS_PER_STEP)):
            request.output_ids += map(self._chunk_ids.of, some)
            request.parent = some[-1]
            self._num_held_ids += len(some)
            yield

    def _end(self, number: int) -> None:
        self._written.pop(number, None)
        request = self._open.get(number)
        if request is not None:
            request.is_over = True

    def _take_line(self, number: int, request: _OpenRequest) -> str:
        del self._open[number]
        self._num_held_ids -= len(request.ids) + len(request.output_ids)
        if not request.is_over:
            self._written[number] = None
            if len(self._written) > MAX_HELD:
                self._written.popitem(last=False)
        line: dict[str, object] = {
            "timestamp": max(0, round(1000 * (request.timestamp_seconds - self._start))),
            "input_length": request.num_tokens,
            "output_length": request.end_tokens - request.num_tokens,
            "hash_ids": request.ids,
        }
        if request.output_ids:
            line["output_hash_ids"] = request.output_ids
        line |= {
            "block_tokens": self._block_tokens,
            "model": request.model,
            "tenant": request.tenant,
            "recording": self._recording,
        }
        return json.dumps(line) + "\n"

    def _salted(self, data: bytes) -> bytes:
        return blake3(data, key=self._salt).digest()


def _key_of_rest(request: _OpenRequest, prefix: Prefix, block_tokens: int) -> bytes:
    """Return the key of the tokens behind the last whole block of a prompt."""
    if prefix.hash_block_size:
        return blake3(request.namespace + prefix.block_hashes[-1]).digest()
    token_ids = prefix.token_ids[request.num_whole_blocks * block_tokens :]
    return blake3(request.parent + token_ids.astype("<u4", copy=False).tobytes()).digest()


def _behind(request: _OpenRequest, prefix: Prefix, num_blocks: int, block_tokens: int) -> tuple[Namespace, Prefix]:
    """Return the parent of the keys behind a number of blocks, and the tokens or hashes there."""
    if not prefix.hash_block_size:
        return Namespace(request.parent), Prefix(token_ids=prefix.token_ids[num_blocks * block_tokens :])
    first = num_blocks * (block_tokens // prefix.hash_block_size)
    hashes = prefix.block_hashes[first:]
    rest = Prefix(token_ids=prefix.token_ids, block_hashes=hashes, hash_block_size=prefix.hash_block_size)
    return request.namespace, rest

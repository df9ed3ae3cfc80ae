"""Requests on their way into a recording: a line each, in the order of their lookups.

A line has `timestamp` (ms since the recording began), `input_length` and `output_length` (tokens), and `hash_ids`, one
for each block of the prompt, as in Mooncake's traces. `block_tokens` says how many tokens a block has: those of a chunk
of the instance. The last one may be shorter. `output_hash_ids` has the whole blocks behind the prompt that the request
stored.
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.depot.recording import LookedUp, RequestEnded, Seen, Stored
from service.l1.keys import Namespace, Prefix
from service.recording.chunk_ids import ChunkIds
from service.recording.fingerprints import Fingerprints

HOLD_SECONDS = 120.0
"""How long a line waits for the end of its request, and for those before it. Then it is written as it is."""
MAX_HELD_IDS = 1 << 20
"""The ids of all lines that wait, some 40 MB. With more, the first lines are written as they are."""
MAX_HELD = 1 << 16
MAX_BLOCKS = 1 << 16
"""Blocks of one request: 16 million tokens in blocks of 256. What a longer prompt has behind them is left out."""
MAX_NAMES = 1 << 12
BLOCKS_PER_STEP = 64  # a tenth of a millisecond


@dataclass(slots=True, eq=False)
class _OpenRequest:
    """A request without a line. `last` is the fingerprint of its last whole block, output included."""

    timestamp_seconds: float
    namespace: Namespace
    block_tokens: int
    model: int
    tenant: int
    num_tokens: int = 0
    num_whole_blocks: int = 0
    end_tokens: int = 0
    last: int = 0
    ids: list[int] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)
    is_over: bool = False


class OpenRequests:
    """The requests that have no line yet. `start` is when the recording began (monotonic seconds).

    The ids of blocks are the numbers in the order in which their fingerprints were seen first.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._fingerprints = Fingerprints()
        self._recording = secrets.token_hex(4)
        self._chunk_ids = ChunkIds()
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
                seen.chunk_size,
                self._models.of(self._fingerprints.of_text(seen.model_name.encode())),
                self._tenants.of(self._fingerprints.of_text(seen.tenant.encode())),
            )
        elif seen.prefix.num_tokens <= request.num_tokens:
            return  # the engine asked once more
        self._num_held_ids -= len(request.ids) + len(request.output_ids)
        request.namespace, request.block_tokens = seen.namespace, seen.chunk_size
        yield from self._number(request, seen.prefix)
        self._num_held_ids += len(request.ids)

    def _number(self, request: _OpenRequest, prefix: Prefix) -> Iterator[None]:
        """Give the blocks of a prompt their ids."""
        request.num_tokens = request.end_tokens = min(prefix.num_tokens, MAX_BLOCKS * request.block_tokens)
        request.num_whole_blocks, num_left = divmod(request.num_tokens, request.block_tokens)
        request.ids, request.output_ids = [], []
        yield from self._add_ids(request, request.ids, prefix, range(request.num_whole_blocks))
        if num_left:
            rest = self._fingerprints.of_rest(
                request.namespace, request.last, prefix, request.num_whole_blocks, request.block_tokens
            )
            request.ids.append(self._chunk_ids.of(rest))

    def _store(self, seen: Stored) -> Iterator[None]:
        request = self._open.get(seen.request)
        if request is None or seen.prefix.num_tokens <= request.end_tokens:
            return
        request.end_tokens = seen.prefix.num_tokens
        first = request.num_whole_blocks + len(request.output_ids)
        blocks = range(first, min(seen.prefix.num_tokens // request.block_tokens, MAX_BLOCKS))
        yield from self._add_ids(request, request.output_ids, seen.prefix, blocks)
        self._num_held_ids += len(blocks)

    def _add_ids(self, request: _OpenRequest, ids: list[int], prefix: Prefix, blocks: range) -> Iterator[None]:
        """Add the ids of some whole blocks of a prefix. Those before them have their ids."""
        for first in range(blocks.start, blocks.stop, BLOCKS_PER_STEP):
            some = range(first, min(first + BLOCKS_PER_STEP, blocks.stop))
            found = self._fingerprints.of_blocks(request.namespace, request.last, prefix, some, request.block_tokens)
            ids += map(self._chunk_ids.of, found)
            request.last = found[-1]
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
            "block_tokens": request.block_tokens,
            "model": request.model,
            "tenant": request.tenant,
            "recording": self._recording,
        }
        return json.dumps(line) + "\n"

"""A reader of KV events as a router has one: its picture of what a depot holds, from batches in any state."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

END = (1 << 64) - 1


class Pictured:
    """What a reader believes: `media[topic][hash]` names where each block is. `tokens[hash]` are those of the block."""

    def __init__(self) -> None:
        self.media: dict[bytes, dict[Any, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.tokens: dict[Any, tuple[int, ...]] = {}
        self.parents: dict[Any, Any] = {}
        self.last = -1
        self.num_unknown_parents = 0

    def apply(self, topic: bytes, number: int, payload: bytes) -> None:
        """Take a batch that comes next."""
        self.last = number
        time, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(time, float) and rank is None
        for event in events:
            self._apply(self.media[topic], event if isinstance(event, dict) else _as_map(event))

    def held(self, medium: str, topic: bytes | None = None) -> set[Any]:
        """Return the blocks in a medium."""
        of_topics = self.media.values() if topic is None else [self.media[topic]]
        return {block for media in of_topics for block, names in media.items() if medium in names}

    def _apply(self, media: dict[Any, set[str]], event: dict[str, Any]) -> None:
        match event["type"]:
            case "AllBlocksCleared":
                media.clear()
            case "BlockRemoved":
                for block in event["block_hashes"]:
                    media[block].remove(event["medium"])  # of a block that is there: a depot says nothing twice
                    if not media[block]:
                        del media[block]
            case "BlockStored":
                parent, size = event["parent_block_hash"], event["block_size"]
                if parent is not None and parent not in media:
                    self.num_unknown_parents += 1
                assert len(event["token_ids"]) in (0, size * len(event["block_hashes"]))
                for number, block in enumerate(event["block_hashes"]):
                    assert event["medium"] not in media[block]
                    media[block].add(event["medium"])
                    self.tokens[block] = tuple(event["token_ids"][number * size : (number + 1) * size])
                    self.parents[block], parent = parent, block


def _as_map(event: list[Any]) -> dict[str, Any]:
    names = {
        "BlockStored": (
            *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name"),
            "extra_keys",
        ),
        "BlockRemoved": ("block_hashes", "medium"),
        "AllBlocksCleared": (),
    }[event[0]]
    return {"type": event[0], **dict(zip(names, event[1:], strict=False))}


class Reader(Pictured):
    """A reader on real sockets. It replays what it lost, and takes no batch twice."""

    def __init__(self, address: str, replay_address: str = "", topic: bytes = b"", *, most_waiting: int = 1000) -> None:
        super().__init__()
        self._context = zmq.asyncio.Context()
        self._subscriber = self._context.socket(zmq.SUB)
        self._subscriber.setsockopt(zmq.RCVHWM, most_waiting)
        self._subscriber.connect(_connectable(address))
        self._subscriber.subscribe(topic)
        self._replay: zmq.asyncio.Socket | None = None
        if replay_address:
            self._replay = self._context.socket(zmq.DEALER)
            self._replay.connect(_connectable(replay_address))
        self.num_gaps = 0
        self.topics: list[bytes] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._context.destroy(linger=0)

    async def take(self, within_seconds: float = 0.05) -> bool:
        """Take one batch and what is missing before it. Return whether one came in time."""
        if not await self._subscriber.poll(int(within_seconds * 1e3)):  # to cancel a receive might lose what came
            return False
        topic, frame, payload = await self._subscriber.recv_multipart()
        number = int.from_bytes(frame, "big")
        if number <= self.last and number != 0:
            return True
        if number > self.last + 1:
            self.num_gaps += 1
            if self._replay is not None:
                for batch in await self.replay(self.last + 1):
                    if self.last < batch[1] < number:
                        self.take_batch(*batch)
        self.take_batch(topic, number, payload)
        return True

    def take_batch(self, topic: bytes, number: int, payload: bytes) -> None:
        self.topics.append(topic)
        self.apply(topic, number, payload)

    async def replay(self, first: int) -> list[tuple[bytes, int, bytes]]:
        """Return what the depot still has of the batches from a number on."""
        assert self._replay is not None
        await self._replay.send_multipart((b"", first.to_bytes(8, "big")))
        batches: list[tuple[bytes, int, bytes]] = []
        while True:
            async with asyncio.timeout(10.0):
                empty, topic, frame, payload = await self._replay.recv_multipart()
            assert empty == b""
            number = int.from_bytes(frame, "big")
            if number == END:
                return batches
            batches.append((topic, number, payload))

    async def until(self, condition: Any, within_seconds: float = 20.0) -> None:
        """Take batches until a condition holds."""
        async with asyncio.timeout(within_seconds):
            while not condition():
                await self.take()


def _connectable(address: str) -> str:
    return address.replace("0.0.0.0", "127.0.0.1")

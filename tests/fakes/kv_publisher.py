"""A publisher of KV events over ZMQ, as a depot or an engine has one: it numbers batches, and replays what it kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec
import zmq

from examples.router.connection import Endpoints

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
TOPIC = b"kv@pod-1@model"


class KvPublisher:
    """Publishes on ipc sockets in a folder. Replays are answered in a thread. Use it in a `with`."""

    def __init__(self, endpoints: Endpoints, *, kept_batches: int = 1_000) -> None:
        self.endpoints = endpoints
        self.num_requests = 0
        self.is_silent = False
        """Whether replays get no answer, as from a depot that hangs. They get it when this becomes false."""
        self.has_end = True
        """Whether a replay ends."""
        self._kept_batches = kept_batches
        self._batches: list[tuple[int, bytes]] = []
        self._next = 0
        self._lock = threading.Lock()
        self._context = zmq.Context()
        self._live = self._context.socket(zmq.XPUB)  # it hears of subscriptions
        self._live.bind(endpoints.events)
        self._replay = self._context.socket(zmq.ROUTER)
        self._replay.bind(endpoints.replay)
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_closing.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def publish(self, *events: Mapping[str, Any] | Sequence[Any], is_lost: bool = False) -> None:
        """Publish a batch. `is_lost`: it is kept for replays, and not sent, as if the network had lost it."""
        payload = msgspec.msgpack.encode([self._next / 10, events, None])
        with self._lock:
            self._batches = [*self._batches, (self._next, payload)][-self._kept_batches :]
        if not is_lost:
            self._live.send_multipart([TOPIC, self._next.to_bytes(8, "big"), payload])
        self._next += 1

    def wait_for_reader(self) -> None:
        """Wait until a reader has subscribed, so that it gets what is published from now on."""
        self._live.recv()

    def drop_readers(self) -> None:
        """End the connections of all readers, as a network does, and take new ones. Replays go on."""
        self._live.close(linger=0)
        self._live = self._context.socket(zmq.XPUB)
        self._live.bind(self.endpoints.events)

    def _answer(self) -> None:
        waiting: list[list[bytes]] = []
        while not self._is_closing.is_set():
            if self._replay.poll(10):
                waiting.append(self._replay.recv_multipart())
                self.num_requests += 1
            while waiting and not self.is_silent:
                self._replay_to(*waiting.pop(0))

    def _replay_to(self, reader: bytes, empty: bytes, start: bytes) -> None:
        with self._lock:
            batches = list(self._batches)
        for sequence, payload in batches:
            if sequence >= int.from_bytes(start, "big"):
                self._replay.send_multipart([reader, empty, TOPIC, sequence.to_bytes(8, "big"), payload])
        if self.has_end:
            self._replay.send_multipart([reader, empty, b"", END_OF_REPLAY, b""])

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
        self.num_replays = 0
        self.is_silent = False
        """Whether replays get no answer, as from a depot that hangs."""
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

    def _answer(self) -> None:
        while not self._is_closing.is_set():
            if not self._replay.poll(10):
                continue
            reader, empty, start = self._replay.recv_multipart()
            if self.is_silent:
                continue
            self.num_replays += 1
            with self._lock:
                batches = list(self._batches)
            for sequence, payload in batches:
                if sequence >= int.from_bytes(start, "big"):
                    self._replay.send_multipart([reader, empty, TOPIC, sequence.to_bytes(8, "big"), payload])
            self._replay.send_multipart([reader, empty, b"", END_OF_REPLAY, b""])

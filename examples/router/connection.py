"""The two ZMQ sockets of one depot's KV events: one hears what is published, the other asks for what was missed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import zmq

from examples.router.follower import Batch, BeginAnew, Follower, Step

MAX_WAITING_MESSAGES = 10_000
"""What a socket holds. The publisher drops what comes on top, and a replay brings it."""
_MAX_AT_ONCE = 1_000
_LONGEST_READ_SECONDS = 0.5
"""Between two reads. What is longer is this process's own pause, and no silence of the depot."""
_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where a depot publishes its events, and where it answers replays."""

    events: str
    replay: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a reader waits. It asks every `probe_seconds` whether it has the newest batch.

    So it notices a lost last batch, a depot that started again, and, after `gone_seconds` without an answer, one that
    is gone.
    """

    probe_seconds: float = 1.0
    gone_seconds: float = 5.0


class Connection:
    """Reads one depot. `answers`: it has told all that it holds, and has answered lately."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Endpoints, patience: Patience) -> None:
        self._context = context
        self._endpoints = endpoints
        self._patience = patience
        self._follower = Follower()
        self._live = self._connect(zmq.SUB, endpoints.events)
        self._live.subscribe(b"")
        self._disconnections = self._live.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._replay = self._connect(zmq.DEALER, endpoints.replay)
        self._asked_at = 0.0
        self._read_at = time.monotonic()
        self._silent_seconds = 0.0
        self.answers = False

    def __repr__(self) -> str:
        return f"<Connection to {self._endpoints.events}, {self._follower!r}>"

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """What to poll before `read`."""
        return self._live, self._replay

    def read(self) -> Iterator[Step]:
        """Yield what follows from the messages that have come, then ask for what is missing."""
        self._silent_seconds += min(time.monotonic() - self._read_at, _LONGEST_READ_SECONDS)
        self._read_at = time.monotonic()
        published = list(_messages(self._live, 3))
        if list(_messages(self._disconnections, 2)):  # before the first message of the next connection
            self._follower.disconnect()
            self._renew_replay()
        for topic, sequence, payload in published:
            yield from self._follower.live(Batch(int.from_bytes(sequence, "big"), topic, payload))
        for _, topic, sequence, payload in _messages(self._replay, 4):
            self._silent_seconds = 0.0
            if sequence == _END_OF_REPLAY:
                yield from self._follower.end()
                self.answers = self.answers or not self._follower.needs_replay
            else:
                yield from self._follower.replayed(Batch(int.from_bytes(sequence, "big"), topic, payload))
        if self._silent_seconds > self._patience.gone_seconds:
            self._give_up()
            yield BeginAnew()
        now = time.monotonic()
        is_due = self._follower.needs_replay or now > self._asked_at + self._patience.probe_seconds
        if is_due and not self._follower.is_asking and self._replay.poll(0, zmq.POLLOUT):
            self._replay.send_multipart([b"", self._follower.ask().to_bytes(8, "big")])
            self._asked_at = now

    def _give_up(self) -> None:
        """Count the depot as gone, and begin anew with it."""
        self.answers = False
        self._follower = Follower()
        self._renew_replay()
        self._silent_seconds = 0.0

    def _renew_replay(self) -> None:
        """Let go of what was asked. Late answers go to the old socket, and are never read."""
        self._replay.close(linger=0)
        self._replay = self._connect(zmq.DEALER, self._endpoints.replay)

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set_hwm(MAX_WAITING_MESSAGES)
        # Not ZMQ_IMMEDIATE: with it, libzmq aborts the process if a connection ends between two frames of a message.
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        socket.connect(endpoint)
        return socket


def _messages(socket: zmq.Socket[bytes], num_frames: int) -> Iterator[list[bytes]]:
    """Yield the messages that have come, at most so many that the other sockets get their time."""
    for _ in range(_MAX_AT_ONCE):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == num_frames:
            yield frames

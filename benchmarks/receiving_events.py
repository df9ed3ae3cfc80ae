"""``python -m benchmarks.receiving_events ADDRESS``: a reader of KV events that only receives, as on another machine.

It prints a line when it has the first batch.
"""

from __future__ import annotations

import sys

import zmq


def main(address: str) -> None:
    """Receive until the process is ended."""
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.setsockopt(zmq.RCVHWM, 0)
    subscriber.connect(address)
    subscriber.subscribe(b"")
    subscriber.recv_multipart()
    print("received", flush=True)  # for the parent process
    while True:
        subscriber.recv_multipart()


if __name__ == "__main__":
    main(sys.argv[1])

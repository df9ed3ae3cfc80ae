"""Writers of a disk tier that are killed at any step between their system calls, and what the next process finds.

Run as a program: `FOLDER SEED NUM_KILLS`. It is one process without threads while it forks, so that a fork is a copy of
all of it. It prints how many chunks it compared.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.l1.keys import ChunkKey
from service.tiers.stores import disk
from tests.fakes.disk_tier import DiskTier, bytes_of

SIZES = (4_096, 10_000, 65_536, 300_000, 1 << 20)


def main() -> None:
    """Kill writers, and compare all chunks after each."""
    disk.PIECE_BYTES = 65_536  # so that the chunks have pieces
    folder, seed, num_kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    known: dict[ChunkKey, int] = {}
    num_compared = 0
    for number in range(num_kills):
        acknowledged, evicted = write_until_killed(folder, number, rng)
        known |= acknowledged
        tier = DiskTier(folder)
        keys = tier.keys()
        lost = {key for key in acknowledged if key not in evicted} - set(keys)
        assert not lost, f"kill {number}: {len(lost)} acknowledged chunks are lost"
        for key in keys:
            num_bytes = size_of(key)
            assert tier.get(key, num_bytes) == bytes_of(key, num_bytes), f"kill {number}: wrong bytes"
        num_compared += len(keys)
        tier.index.check()
        tier.store.close()
    sys.stdout.write(f"{num_compared}\n")


def size_of(key: ChunkKey) -> int:
    """Return the bytes of a chunk, which its key says."""
    return int.from_bytes(key[:8], "little")


def write_until_killed(folder: Path, number: int, rng: random.Random) -> tuple[dict[ChunkKey, int], set[ChunkKey]]:
    """Write chunks in a process that is killed at some step. Return those that it was told of, and those that left."""
    reading, writing = os.pipe()
    seed, num_steps = rng.random(), rng.randrange(120)
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        write(folder, number, random.Random(seed), num_steps, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the writer ended by itself"
    acknowledged: dict[ChunkKey, int] = {}
    evicted: set[ChunkKey] = set()
    for begin in range(0, len(told) // 33 * 33, 33):
        key = ChunkKey(told[begin + 1 : begin + 33])
        if told[begin : begin + 1] == b"+":
            acknowledged[key] = size_of(key)
        else:
            evicted.add(key)
    return acknowledged, evicted


def write(folder: Path, number: int, rng: random.Random, num_steps: int, told: int) -> None:
    """Write, remove and read chunks until the process is killed."""
    try:
        tier = DiskTier(folder)
        left = [num_steps]
        kill_between(rng, left)
        while True:
            sizes = {}
            for _ in range(rng.randrange(1, 5)):
                num_bytes = rng.choice(SIZES)
                sizes[ChunkKey(num_bytes.to_bytes(8, "little") + rng.randbytes(24))] = num_bytes
            before = set(tier.keys())
            for key in before if rng.random() < 0.1 else ():
                if rng.random() < 0.3 and (place := tier.index.remove(key)) is not None:
                    os.write(told, b"-" + key)
                    tier.store.delete([place])
            parts = tier.parts_to_write(sizes)
            for key in before - set(tier.keys()):
                os.write(told, b"-" + key)
            for part_number, error in tier.store.write_from(parts):
                assert error is None
                key = ChunkKey(parts[part_number].place.name)
                os.write(told, b"+" + key)
                if rng.random() < 0.9:
                    tier.index.commit(key)
                else:
                    os.write(told, b"-" + key)
                    tier.index.abandon(key)
    except BaseException as error:
        sys.stderr.write(f"kill {number}: {error!r}\n")
        os._exit(1)


def kill_between(rng: random.Random, left: list[int]) -> None:
    """Kill this process at its n-th write to a file, before it, in the middle of it, or after it."""

    def killing(call: Callable[..., int], cut: Callable[[Any, int], Any]) -> Callable[..., int]:
        def write(fd: int, data: Any, offset: int) -> int:
            left[0] -= 1
            if left[0] >= 0:
                return call(fd, data, offset)
            moment = rng.randrange(3)
            if moment == 1:
                call(fd, cut(data, rng.randrange(8)), offset)
            elif moment == 2:
                call(fd, data, offset)
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
            raise AssertionError("not reached")

        return write

    os.pwrite = killing(os.pwrite, lambda data, eighths: data[: len(data) * eighths // 8])
    os.pwritev = killing(os.pwritev, lambda data, eighths: [data[0][: len(data[0]) * eighths // 8 // 4_096 * 4_096]])


if __name__ == "__main__":
    main()

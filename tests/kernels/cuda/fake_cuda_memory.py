"""Memory of the fake CUDA: the bytes that may be touched, and races between operations that touched them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.runtime import Address

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.int64]
Clock = dict[str, int]
"""For each stream, or thread that issues, how much of it is known to be done."""


class IllegalAddress(Exception):
    """A byte outside all memory was touched."""


def bytes_at(address: int, size_bytes: int) -> Bytes:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))


def merge(clock: Clock, other: Clock) -> None:
    for actor, time in other.items():
        clock[actor] = max(clock.get(actor, 0), time)


@dataclass(eq=False)
class Memory:
    """An allocation or a registration."""

    kind: str
    bytes: Bytes
    address: int = field(init=False)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.address = self.bytes.ctypes.data
        self.end = self.address + self.bytes.size


@dataclass(eq=False)
class Touch:
    """The bytes that one operation read and wrote: for each memory, as bits of a number."""

    actor: str
    name: str
    clock: Clock
    read: dict[Memory, int] = field(default_factory=dict)
    written: dict[Memory, int] = field(default_factory=dict)

    def is_after(self, other: Touch) -> bool:
        return self.clock.get(other.actor, 0) >= other.clock[other.actor]

    def clashes_with(self, other: Touch) -> bool:
        return any(
            bits & theirs.get(memory, 0)
            for ours, theirs in (
                (self.written, other.written),
                (self.written, other.read),
                (self.read, other.written),
            )
            for memory, bits in ours.items()
        )


class TouchableMemory:
    """The bytes that kernels and copies may touch, with the touches so far."""

    def __init__(self) -> None:
        self.all: list[Memory] = []
        self._touches: list[Touch] = []

    def add(self, kind: str, memory: Bytes) -> Address:
        self.all.append(Memory(kind, memory))
        return Address(self.all[-1].address)

    def remove(self, kind: str, address: int) -> None:
        self.all.remove(next(each for each in self.all if each.kind == kind and each.address == address))

    def holding(self, address: int, size_bytes: int = 1) -> Memory | None:
        """Return the one memory that has all of a range."""
        return next((each for each in self.all if each.address <= address and address + size_bytes <= each.end), None)

    def read(self, touch: Touch, addresses: Addresses) -> Bytes:
        values = np.empty(addresses.size, dtype=np.uint8)
        for memory, is_there, offsets in self._found(addresses):
            values[is_there] = memory.bytes[offsets]
            touch.read[memory] = touch.read.get(memory, 0) | _bits(memory, offsets)
        return values

    def write(self, touch: Touch, addresses: Addresses, values: Bytes) -> None:
        for memory, is_there, offsets in self._found(addresses):
            memory.bytes[offsets] = values[is_there]
            touch.written[memory] = touch.written.get(memory, 0) | _bits(memory, offsets)

    def races(self, touch: Touch) -> list[str]:
        """Return the earlier touches that this one clashes with and is not ordered after."""
        clashes = [
            f"{touch.name} in {touch.actor} is not ordered after {other.name} in {other.actor}"
            for other in self._touches
            if not touch.is_after(other) and touch.clashes_with(other)
        ]
        self._touches.append(touch)
        return clashes

    def _found(self, addresses: Addresses) -> Sequence[tuple[Memory, NDArray[np.bool_], Addresses]]:
        found = []
        num_found = 0
        first, last = addresses.min(), addresses.max()
        for memory in self.all:
            if last < memory.address or first >= memory.end:
                continue
            is_there = (addresses >= memory.address) & (addresses < memory.end)
            if is_there.any():
                found.append((memory, is_there, addresses[is_there] - memory.address))
                num_found += int(is_there.sum())
        if num_found != addresses.size:
            raise IllegalAddress
        return found


def _bits(memory: Memory, offsets: Addresses) -> int:
    is_touched = np.zeros(memory.bytes.size, dtype=bool)
    is_touched[offsets] = True
    return int.from_bytes(np.packbits(is_touched).tobytes(), "big")

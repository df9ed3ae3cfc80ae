"""What the kernels read on the device: where planes are, and which blocks go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.checksum import WORD_BYTES
from kernels.cuda.resources import Resources
from kernels.cuda.runtime import Address, Stream
from kernels.plan import GroupPlan


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Words that begin as zeros on the device: their address there, and the words after `UploadBuffer.download`."""

    device_address: Address
    words: NDArray[np.uint64]


class UploadBuffer:
    """A buffer of words in pinned memory, and one of the same size on the device.

    It may be cleared and written again only when no upload is under way and no kernel reads it.
    """

    def __init__(self, resources: Resources, num_words: int) -> None:
        self._words = resources.pinned_words(num_words)
        self._address = resources.memory(num_words * WORD_BYTES)
        self._device = resources.device
        self._num_used = 0

    def clear(self) -> None:
        """Start again with the first word."""
        self._num_used = 0

    def append(self, words: NDArray[np.int64]) -> Address:
        """Write words; return where they will be on the device."""
        first, self._num_used = self._num_used, self._num_used + words.size
        self._words[first : self._num_used] = words
        return Address(self._address + first * WORD_BYTES)

    def append_sums(self, num_sums: int) -> Sums:
        """Write zeros, to which kernels will add."""
        first = self._num_used
        address = self.append(np.zeros(num_sums, np.int64))
        return Sums(address, self._words[first : self._num_used].view(np.uint64))

    def download(self, sums: Sums, stream: Stream) -> None:
        """Start to copy sums back from the device."""
        target = Address(sums.words.ctypes.data)
        self._device.copy_to_host(target, sums.device_address, sums.words.nbytes, stream)

    def upload(self, stream: Stream) -> None:
        """Start to copy the written words to the device."""
        if self._num_used:
            source = Address(self._words.ctypes.data)
            self._device.copy_to_device(self._address, source, self._num_used * WORD_BYTES, stream)


@dataclass(frozen=True, slots=True, eq=False)
class PlaneArrays:
    """Where a group's planes are, in the order of a chunk, and where the device finds these addresses and offsets."""

    plan: GroupPlan
    addresses: NDArray[np.uint64]
    device_addresses: Address
    device_offsets: Address


def upload_planes(
    resources: Resources, plans: Sequence[GroupPlan], plane_addresses: Sequence[NDArray[np.uint64]]
) -> list[PlaneArrays]:
    """Upload the planes of all groups, and wait for that."""
    buffer = UploadBuffer(resources, 2 * sum(addresses.size for addresses in plane_addresses))
    planes = [
        PlaneArrays(plan, addresses, buffer.append(addresses.view(np.int64)), buffer.append(plan.chunk_offsets.ravel()))
        for plan, addresses in zip(plans, plane_addresses, strict=True)
    ]
    stream = resources.stream()
    buffer.upload(stream)
    resources.device.drain(stream)
    return planes


@dataclass(frozen=True, slots=True, eq=False)
class BlockArrays:
    """The blocks of one group in an upload; those of copy `i` are `starts[i] .. starts[i + 1]`."""

    starts: NDArray[np.int64]
    device_ids: Address
    device_places: Address


@dataclass(frozen=True, slots=True, eq=False)
class UploadedCopies:
    """The copies of one upload buffer, which has their block ids. Steps count these copies from 0.

    `sums` are where the kernels add up the copies' checksums; None if no copy wants one.
    """

    l1_offsets: NDArray[np.int64]
    blocks: Sequence[BlockArrays]
    sums: Sums | None

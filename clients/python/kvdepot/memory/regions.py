"""Memory that tensors lie in, as regions to attach; the CPU and CUDA share it in ways of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from kvdepot.v1.cache_pb2 import MemoryRegion


@dataclass(frozen=True, slots=True)
class Mapping:
    """The addresses of a region's data in this process, and the size of torch's header before them."""

    start: int
    end: int
    owner: Any  # kept alive: while it lives, nothing else can be at these addresses
    header_bytes: int = 0


class Regions(ABC):
    """The regions so far. A subclass says where a tensor is, and shares its memory."""

    def __init__(self) -> None:
        self._regions: list[MemoryRegion] = []
        self._mappings: list[Mapping] = []

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """All regions so far, to attach; a region's index never changes."""
        return tuple(self._regions)

    def locate(self, tensor: Any) -> tuple[int, int]:
        """Return the index of the tensor's region, and the byte in the region at which its first element is."""
        address = self._address(tensor)
        found = (region for region, each in enumerate(self._mappings) if each.start <= address < each.end)
        region = next(found, None)
        if region is None:
            region = self._share(tensor)
            address = self._address(tensor)  # sharing may move it
        mapping = self._mappings[region]
        return region, mapping.header_bytes + address - mapping.start

    def _append(self, region: MemoryRegion, mapping: Mapping) -> int:
        self._regions.append(region)
        self._mappings.append(mapping)
        return len(self._regions) - 1

    @abstractmethod
    def _address(self, tensor: Any) -> int:
        """Return where the tensor's first element is in this process."""

    @abstractmethod
    def _share(self, tensor: Any) -> int:
        """Share the memory that the tensor lies in, and return the region's index."""

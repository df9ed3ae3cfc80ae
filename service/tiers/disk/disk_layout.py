"""The layout of a disk tier: two files in one folder, whose sizes follow from the size of the tier.

`records` has a header, and an entry for each chunk. `chunks` has the bytes of the chunks alone. So the first is used
through the page cache, and the second past it. Another size of the tier moves no entry and no chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.tiers.address.address import TierAddress

HEADER_BYTES = 4096
ENTRY_BYTES = 256
ALIGNMENT_BYTES = 4096
_BYTES_PER_RECORD = 64 << 10
_MIN_RECORDS = 16_384


@dataclass(frozen=True, slots=True)
class DiskLayout:
    """The parts of a tier that takes `size_bytes` of a disk.

    A tier has a record for each 64 KiB, or 16,384. With more chunks than that, one leaves for each that comes.
    """

    size_bytes: int

    @classmethod
    def of(cls, address: TierAddress) -> DiskLayout:
        """Return the layout of the tier of an address."""
        return cls(address.options["size"])

    @property
    def num_records(self) -> int:
        """The number of entries."""
        return max(_MIN_RECORDS, self.size_bytes // _BYTES_PER_RECORD)

    @property
    def records_bytes(self) -> int:
        """The size of the file of records."""
        return HEADER_BYTES + self.num_records * ENTRY_BYTES

    @property
    def chunks_bytes(self) -> int:
        """The size of the file of chunks."""
        return (self.size_bytes - self.records_bytes) // ALIGNMENT_BYTES * ALIGNMENT_BYTES


def smallest_disk_bytes(addresses: Iterable[TierAddress]) -> int | None:
    """Return how many bytes of chunks the smallest disk tier has space for. None: there is no disk tier."""
    disks = (DiskLayout.of(address).chunks_bytes for address in addresses if address.kind == "disk")
    return min(disks, default=None)

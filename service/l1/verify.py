"""What is verified: the setting that says when checksums of chunks are computed and compared."""

from __future__ import annotations

from enum import StrEnum


class Verify(StrEnum):
    """When checksums are computed and compared. A chunk without a checksum is served unverified."""

    OFF = "off"
    STORE = "store"
    RETRIEVE = "retrieve"
    ALL = "all"

    @property
    def at_stores(self) -> bool:
        """Whether a store computes the checksum of each chunk."""
        return self is not Verify.OFF

    @property
    def at_retrieves(self) -> bool:
        """Whether a retrieve compares the bytes that it reads."""
        return self in (Verify.RETRIEVE, Verify.ALL)

    @property
    def by_scrub(self) -> bool:
        """Whether the scrub reads all chunks in the background."""
        return self in (Verify.STORE, Verify.ALL)

"""The names that chunks have in a store which depots with different secrets share."""

from __future__ import annotations

from typing import TypeVar

from blake3 import blake3

from service.tiers.io_worker.messages import ReadPart, WritePart
from service.tiers.store import Place

P = TypeVar("P", ReadPart, WritePart)


class Names:
    """Names that follow from the depot's names and a `secret`. It is empty for a local store, and without a secret.

    So a depot neither finds, overwrites nor deletes what one with another secret has written.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, name: bytes) -> bytes:
        """Return the name in the store of what the depot calls `name`."""
        return blake3(name, key=self._secret).digest() if self._secret else name

    def placed(self, place: Place) -> Place:
        """Return the place in the store of what the depot says is at `place`."""
        return place._replace(name=self.of(place.name))

    def in_store(self, part: P) -> P:
        """Return a part with its place in the store."""
        return part._replace(place=self.placed(part.place))

"""S3 for the suite of stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

from service.tiers.address.address import TierAddress
from service.tiers.record import RECORD_BYTES, ChunkRecord
from service.tiers.store import Place, Role, Store, StoreContext
from service.tiers.stores.s3 import S3Store
from tests.servers.s3 import BUCKET, S3Server, s3_server

PREFIX = "some/prefix"
SLOW_SECONDS = 30.0
"""moto is slow with large objects, and so are machines that run tests."""


class S3UnderTest:
    """Stores of a prefix of moto's bucket."""

    def __init__(self, server: S3Server, credentials_file: Path) -> None:
        self._server = server
        options = f"endpoint={server.endpoint}&region=us-east-1&credentials_file={credentials_file}"
        self.address = TierAddress.parse(f"s3://{BUCKET}/{PREFIX}?{options}")

    def open(self, role: Role, l1: memoryview, *, patience_seconds: float | None = None) -> Store:
        """Open the store."""
        context = StoreContext(address=self.address, role=role, l1=l1)
        return S3Store(context, call_seconds=patience_seconds or SLOW_SECONDS)

    def place(self, key: bytes, slot_bytes: int) -> Place:
        """Return the place of a key."""
        return Place(key)

    def sealed(self, record: ChunkRecord, place: Place) -> bytes:
        """Return a record as it is."""
        return record.pack()

    def unsealed(self, packed: bytes, place: Place) -> ChunkRecord | None:
        """Return what a record says."""
        return ChunkRecord.unpack(packed)

    def flip_bit(self, place: Place, at_bytes: int) -> None:
        """Change a bit of the object."""
        key = place.name.hex()
        path = f"{PREFIX}/{key[:2]}/{key}"
        body = bytearray(self._server.request("GET", path))
        body[RECORD_BYTES + at_bytes] ^= 1
        self._server.request("PUT", path, bytes(body))

    def filled(self) -> NoReturn:
        """Refuse: moto never gets full."""
        raise NotImplementedError

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server."""
        return self._server.dead()

    def paused(self) -> AbstractContextManager[None]:
        """Stop the server."""
        return self._server.paused()


@contextmanager
def moto(folder: Path) -> Iterator[S3UnderTest]:
    """Run moto's server."""
    file = folder / "credentials"
    file.write_text("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    with s3_server(folder) as server:
        yield S3UnderTest(server, file)

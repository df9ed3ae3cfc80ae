"""Where the benchmarks' tiers keep chunks: a folder, and servers on this machine that `make test-servers` fetches."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlencode

from benchmarks.tier_clients import BareClient, BareClients, BareDisk, BareMooncake, BareS3, BareValkey
from service.tiers.address.address import TierAddress
from tests.fakes.mooncake import Master
from tests.fakes.real_servers import SERVERS_PYTHON
from tests.servers.process import ServerProcess
from tests.servers.s3 import BUCKET, s3_server
from tests.servers.valkey import PROGRAM, redis_server

ON_DISK = "/var/tmp"  # /tmp is in memory on many machines
MIB = 1 << 20
DISK_BYTES = 2048 * MIB  # new chunks get a fifth of it, and those of a round must fit
SEGMENT = "1GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place of chunks that is there. `url` is its address. `server` is None where no process of others serves it.

    `client` returns the n-th bare client of some memory.
    """

    url: str
    client: Callable[[memoryview, int], BareClient]
    server: ServerProcess | None = None

    @property
    def address(self) -> TierAddress:
        """The address of the tier."""
        return TierAddress.parse(self.url)

    def connect(self, memory: memoryview) -> BareClient:
        """Return bare clients that move memory."""
        return BareClients(lambda number: self.client(memory, number))


@contextmanager
def disk() -> Iterator[Place]:
    """Use a folder."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-", dir=ON_DISK) as folder:
        url = f"disk://{folder}/tier?size={DISK_BYTES}"
        yield Place(url=url, client=lambda memory, n: BareDisk(Path(folder), memory.nbytes, n))


@contextmanager
def valkey() -> Iterator[Place]:
    """Run a server."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-") as folder, redis_server(Path(folder)) as server:
        url = f"valkey://127.0.0.1:{server.port}"
        yield Place(url=url, server=server, client=lambda _, n: BareValkey(TierAddress.parse(url), n))


@contextmanager
def s3() -> Iterator[Place]:
    """Run a server."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-") as name, s3_server(Path(name)) as server:
        file = Path(name) / "credentials"
        file.write_text("aws_access_key_id = key\naws_secret_access_key = secret\n")
        file.chmod(0o600)
        url = f"s3://{BUCKET}/p?{urlencode({'endpoint': server.endpoint, 'credentials_file': str(file)})}"
        yield Place(url=url, server=server, client=lambda _, n: BareS3(TierAddress.parse(url), n))


@contextmanager
def mooncake() -> Iterator[Place]:
    """Run a master. The tier lends the memory."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-") as folder:
        master = Master(Path(folder) / "master.log")
        url = f"mooncake://127.0.0.1:{master.port}?segment={SEGMENT}"
        try:
            yield Place(url=url, client=lambda memory, n: BareMooncake(TierAddress.parse(url), memory, n))
        finally:
            master.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceKind:
    """A kind of place. `is_here` says whether this machine has what it needs."""

    opened: Callable[[], AbstractContextManager[Place]]
    is_here: Callable[[], bool]


KINDS = {
    "disk": PlaceKind(opened=disk, is_here=lambda: True),
    "valkey": PlaceKind(opened=valkey, is_here=lambda: shutil.which(PROGRAM) is not None),
    "s3": PlaceKind(
        opened=s3, is_here=lambda: bool(list(SERVERS_PYTHON.parents[1].glob("lib/python*/site-packages/moto")))
    ),
    "mooncake": PlaceKind(opened=mooncake, is_here=lambda: find_spec("mooncake") is not None),
}


def here(*names: str) -> Iterator[str]:
    """Yield the names of the kinds that this machine has, and say which it lacks."""
    for name in names:
        if KINDS[name].is_here():
            yield name
        else:
            print(f"not measured: {name} is not there, `make test-servers` fetches it")

"""A store in a folder that does not work, in every way that a test asks for. It runs in real I/O workers.

The option `folder` has the chunks, a file each. A test changes its behaviour by a file `fault` in it, at any time: a
JSON object of verb to fault. I/O workers look at the file at each call.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from service.tiers.address.address import TierAddress
from service.tiers.io_worker.notes import NOTE
from service.tiers.kinds import StoreKind
from service.tiers.record import RECORD_BYTES, ChunkRecord
from service.tiers.store import Capabilities, Part, Place, StoreContext, StoreError, StoreFull, StoreUnusable

HANG_SECONDS = 3_600.0
NOTE_NAME = blake3(NOTE).digest()


class FaultyStore:
    """A store of files. `fault` in its folder says what it does wrong."""

    capabilities = Capabilities()

    def __init__(self, context: StoreContext) -> None:
        self._folder = Path(str(context.address.options["folder"]))
        self._l1 = context.l1
        (self._folder / f"pid-{os.getpid()}").write_text(context.role)
        self._fail("open")

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        self._note("exists", len(names))
        if self._fail("exists") == "short":
            return [True]
        return [self._path(name).exists() for name in names]

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        self._note("read", len(parts), parts)
        for number, part in enumerate(parts):
            fault = self._fail("read", number)
            if fault == "foreign part":
                yield 77, None
            path = self._path(part.place.name)
            if not path.exists():
                yield number, None
                continue
            value = bytearray(path.read_bytes())
            if fault == "flipped bit":
                value[RECORD_BYTES + len(value) // 3] ^= 4
            elif fault == "flipped bit in the record":
                value[50] ^= 4
            elif fault == "torn":
                value[len(value) // 2 :] = bytes(len(value) - len(value) // 2)
            elif fault == "another key":
                others = [other for other in self._folder.glob("chunk-*") if other != path]
                value = bytearray(others[0].read_bytes())
            elif fault == "shorter record":
                value[:RECORD_BYTES] = value[: RECORD_BYTES - 1] + b"!"
            data = value[RECORD_BYTES : RECORD_BYTES + part.chunk_bytes]
            part.slot[: len(data)] = data
            yield number, bytes(value[: RECORD_BYTES - (fault == "short record")])
            if fault == "twice":
                yield number, None

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        parts = list(parts)
        self._note("write", len(parts), parts)
        for number, part in enumerate(parts):
            fault = self._fail("write", number)
            if fault == "full":
                yield number, StoreFull("it is full")
            elif fault == "fails":
                yield number, StoreError("it does not want to")
            else:
                path = self._path(part.place.name)
                path.with_suffix(".new").write_bytes(part.record + bytes(part.data))
                path.with_suffix(".new").replace(path)
                yield number, None

    def delete(self, places: Sequence[Place]) -> None:
        self._note("delete", len(places))
        self._fail("delete")
        for place in places:
            self._path(place.name).unlink(missing_ok=True)

    def scan(self) -> Iterable[tuple[Place, bytes]]:
        self._fail("scan")
        for number, path in enumerate(sorted(self._folder.glob("chunk-*"))):
            value = path.read_bytes()
            record = ChunkRecord.unpack(value[:RECORD_BYTES])
            assert record is not None
            yield Place(record.key, 4096 * number, 4096, number), value[:RECORD_BYTES]

    def close(self) -> None:
        (self._folder / f"pid-{os.getpid()}").unlink(missing_ok=True)

    def _path(self, name: bytes) -> Path:
        return self._folder / ("note" if name == NOTE_NAME else f"chunk-{name.hex()}")

    def _note(self, verb: str, num_parts: int, parts: Sequence[Part] = ()) -> None:
        if [part.place.name for part in parts] == [NOTE_NAME]:
            return
        with (self._folder / "calls").open("a") as calls:
            calls.write(f"{verb} {num_parts}\n")

    def _fail(self, verb: str, number: int = 0) -> str:
        """Do what the fault of a verb says, or return it."""
        path = self._folder / "fault"
        fault: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
        if number < int(str(fault.get("after_parts", 0))):
            return ""
        return _do(str(fault.get(verb, "")))


def _do(fault: str) -> str:
    match fault:
        case "hangs":
            time.sleep(HANG_SECONDS)
        case "exits":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise StoreError("the server says no")
        case "bug":
            raise ZeroDivisionError("a bug of the store")
        case "unusable":
            raise StoreUnusable("the password is wrong")
        case _:
            if fault.startswith("takes "):
                time.sleep(float(fault.removeprefix("takes ")))
    return fault


class LocalFaultyStore(FaultyStore):
    """The same as a local store."""

    capabilities = Capabilities(is_local=True)


KIND = StoreKind(entry="tests.fakes.faulty_store:FaultyStore", capabilities=FaultyStore.capabilities)
LOCAL_KIND = StoreKind(entry="tests.fakes.faulty_store:LocalFaultyStore", capabilities=LocalFaultyStore.capabilities)


class Folder:
    """The folder of a faulty store, as a test sees it."""

    def __init__(self, path: Path, secret_file: Path | None = None) -> None:
        self.path = path
        self.secret_file = secret_file

    @property
    def address(self) -> TierAddress:
        """The address of the store."""
        options = {"folder": str(self.path)} | ({"secret_file": str(self.secret_file)} if self.secret_file else {})
        return TierAddress(kind="faulty", name="faulty", options=options)

    def fault(self, *, after_parts: int = 0, **by_verb: str) -> None:
        """Have each call of a verb end in its fault from now on. Without verbs it works."""
        new = self.path / "fault.new"
        new.write_text(json.dumps({**by_verb, "after_parts": after_parts}))
        new.replace(self.path / "fault")

    def calls(self, verb: str) -> list[int]:
        """Return the parts of each call of a verb."""
        path = self.path / "calls"
        calls = [call.split() for call in path.read_text().splitlines()] if path.exists() else []
        return [int(number) for name, number in calls if name == verb]

    def num_chunks(self) -> int:
        """Return how many chunks it has."""
        return len(list(self.path.glob("chunk-*")))

    def pids(self, role: str = "") -> list[int]:
        """Return the processes that have opened it and did not close it, of a role or of all."""
        return [
            int(path.name.removeprefix("pid-")) for path in self.path.glob("pid-*") if role in ("", path.read_text())
        ]

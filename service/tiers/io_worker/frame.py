"""What an I/O worker does: reads requests from its socket, has the store carry them out, and sends replies."""

from __future__ import annotations

import logging
import mmap
import socket
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import islice
from pathlib import Path

from service.tiers.address.address import TierAddress
from service.tiers.address.secret_file import read_secret
from service.tiers.io_worker.checksum import checksum_with
from service.tiers.io_worker.messages import (
    NOTE_BYTES,
    SCANNED_PER_BLOB,
    Message,
    ProtocolBroken,
    Verb,
    line,
    packed_scanned,
    parse,
    unpacked_place,
    unpacked_read,
    unpacked_write,
)
from service.tiers.io_worker.names import Names
from service.tiers.io_worker.notes import Notes
from service.tiers.io_worker.verified import VerifiedStore
from service.tiers.store import Role, Store, StoreContext, StoreError, StoreFull, StoreUnusable

logger = logging.getLogger(__name__)

MapL1 = Callable[[int, int], memoryview]
"""Maps so many bytes of L1's file from an offset on."""


class Frame:
    """Serves the requests of the depot, one at a time, until the depot says `close` or is gone."""

    def __init__(self, channel: socket.socket, map_l1: MapL1) -> None:
        self._channel = channel
        self._map_l1 = map_l1
        self._store: Store
        self._verified: VerifiedStore
        self._names: Names
        self._notes: Notes

    def serve(self) -> None:
        """Serve until the end. An unknown request ends the process with its traceback."""
        requests = self._channel.makefile("rb")
        for received in requests:
            request = parse(received)
            verb = Verb(request["verb"])
            if verb is Verb.CLOSE:
                break
            self._send(self._answered(verb, request))
        if hasattr(self, "_store"):
            self._store.close()

    def _answered(self, verb: Verb, request: Message) -> Message:
        """Carry out a request, and return the last reply."""
        try:
            return self._carry_out(verb, request)
        except StoreError as error:
            kind = "unusable" if isinstance(error, StoreUnusable) else "full" if isinstance(error, StoreFull) else ""
            return {"error": str(error) or type(error).__name__, "kind": kind}
        except (ProtocolBroken, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # a bug of a store, or of a library that it uses
            logger.exception("%s failed", verb)
            return {"error": f"{type(error).__name__}: {error}", "kind": ""}

    def _carry_out(self, verb: Verb, request: Message) -> Message:
        match verb:
            case Verb.OPEN:
                self._open(request)
            case Verb.EXISTS:
                found = self._store.exists([self._names.of(bytes.fromhex(name)) for name in request["names"]])
                return {"done": [int(one) for one in found]}
            case Verb.READ:
                reads = [self._names.in_store(unpacked_read(part)) for part in request["parts"]]
                self._send_all(self._verified.read(reads))
            case Verb.WRITE:
                writes = [self._names.in_store(unpacked_write(part)) for part in request["parts"]]
                self._send_all(self._verified.write(writes))
            case Verb.DELETE:
                self._store.delete([self._names.placed(unpacked_place(place)) for place in request["places"]])
            case Verb.SCAN:
                self._scan()
            case Verb.READ_NOTE:
                return {"done": [int(self._notes.read(self._send_blob))]}
            case Verb.WRITE_NOTE:
                self._notes.write(bytes.fromhex(request["note"]))
            case _:
                raise ProtocolBroken(f"{verb} is no request")
        return {"done": []}

    def _open(self, request: Message) -> None:
        """Open the store that the request names.

        Raises: StoreError.
        """
        address = TierAddress(**request["address"])
        l1 = self._map_l1(request["slots_offset"], request["slots_bytes"])[: request["l1_bytes"]]
        module, _, name = str(request["entry"]).partition(":")
        try:
            open_store: Callable[[StoreContext], Store] = getattr(import_module(module), name)
        except ImportError as error:
            raise StoreUnusable(f"{address.kind} can't be used here: {error}") from error
        secret = _secret(address.options)
        notes = memoryview(mmap.mmap(-1, NOTE_BYTES))
        self._store = open_store(StoreContext(address=address, role=Role(request["role"]), l1=l1, notes=notes))
        checksum = checksum_with(request["library"])
        self._verified = VerifiedStore(self._store, l1, checksum, secret)
        self._names = Names(b"" if self._store.capabilities.is_local else secret)
        self._notes = Notes(VerifiedStore(self._store, notes, checksum, secret), notes, secret)

    def _scan(self) -> None:
        results = iter(self._store.scan())
        while some := [packed_scanned(place, record) for place, record in islice(results, SCANNED_PER_BLOB)]:
            self._send_blob(b"".join(some))

    def _send_blob(self, blob: bytes) -> None:
        self._channel.sendall(line({"blob": len(blob)}) + blob)

    def _send_all(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            self._send(reply)

    def _send(self, reply: Message) -> None:
        self._channel.sendall(line(reply))


def _secret(options: Message) -> bytes:
    """Return the secret of the option `secret_file`; empty without it.

    Raises: StoreUnusable.
    """
    path = options.get("secret_file")
    if not path:
        return b""
    try:
        return read_secret(Path(str(path)))
    except (OSError, ValueError) as error:
        raise StoreUnusable(f"secret_file={path}: {error}") from error

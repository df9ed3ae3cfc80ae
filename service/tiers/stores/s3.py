"""Chunks in S3 and in what speaks like it: an object is a record and then the chunk's bytes.

Threads make the requests of a batch, a bounded number at a time. `obstore` sends them, outside of Python's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing
from typing import NamedTuple, TypeVar

from service.tiers.record import RECORD_BYTES
from service.tiers.store import Capabilities, Part, Place, Role, StoreContext, StoreError, StoreFull, StoreUnusable
from service.tiers.stores.s3_bucket import open_bucket

MAX_REQUESTS = {Role.ASK: 32, Role.READ: 8, Role.WRITE: 8, Role.OWN: 1}
"""At a time. A server that gets hundreds at once answers none of them in time."""
CALL_SECONDS = {Role.ASK: 0.4, Role.READ: 1.8, Role.WRITE: 4.5, Role.OWN: 4.5}
"""Less than an I/O worker of the role may take: an error costs less than a new I/O worker."""
RANGE_BYTES = (8 << 20) + RECORD_BYTES
"""Of one GET, which brings a chunk of 8 MiB at once. One connection to S3 is slower than the network, so a larger chunk
comes over several."""
PIECE_BYTES = 1 << 20
PROBE = "probe"
"""No object has this name. The answer to it tells whether the bucket is there and may be read."""
RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
MAX_ERROR_CHARACTERS = 300
_FULL = ("QuotaExceeded", "StorageFull", "507 Insufficient Storage")
_TOO_SHORT = "416 Range Not Satisfiable"

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Range(NamedTuple):
    """The bytes from `begin` to `end` of the object of a part, whose record comes first."""

    number: int
    part: Part
    begin: int
    end: int

    @property
    def object_bytes(self) -> int:
        return RECORD_BYTES + self.part.chunk_bytes


class S3Store:
    """A bucket, or a prefix in it."""

    capabilities = Capabilities()

    def __init__(self, context: StoreContext, *, call_seconds: float | None = None) -> None:
        """Ask for an object, so that a wrong bucket, endpoint or key is known now.

        Raises: StoreError.
        """
        try:
            import obstore
        except ImportError as error:
            raise StoreUnusable("the package obstore is not there: install kvdepot[s3]") from error
        self._obstore = obstore
        self._call_seconds = call_seconds or CALL_SECONDS[context.role]
        self._prefix = context.address.path.strip("/")
        self._bucket = open_bucket(context.address, self._call_seconds)
        self._threads = ThreadPoolExecutor(MAX_REQUESTS[context.role], thread_name_prefix="s3")
        try:
            self._asked(lambda: obstore.get(self._bucket, self._named(PROBE)))
        except BaseException:
            self.close()
            raise

    def exists(self, names: Sequence[bytes]) -> Sequence[bool]:
        """Return for each name whether there is an object, by a HEAD each."""
        found = [False] * len(names)
        with closing(self._each(self._has, names)) as results:
            for number, result in results:
                found[number] = result.result()
        return found

    def read_into(self, parts: Sequence[Part]) -> Iterator[tuple[int, bytes | None]]:
        """Receive objects into slots. An error is raised after all that can be read."""
        ranges = [each for number, part in enumerate(parts) for each in _ranges(number, part)]
        received: list[list[bytes | None]] = [[] for _ in parts]
        failed: StoreError | None = None
        with closing(self._each(self._read, ranges)) as results:
            for index, result in results:
                number = ranges[index].number
                try:
                    received[number].append(result.result())
                except StoreError as error:
                    failed = error
                    continue
                heads = [head for head in received[number] if head is not None]
                if len(received[number]) == _num_ranges(parts[number]):
                    yield number, b"".join(heads) if len(heads) == len(received[number]) else None
        if failed is not None:
            raise failed

    def write_from(self, parts: Iterable[Part]) -> Iterator[tuple[int, StoreError | None]]:
        """Put objects, each as a whole. Nobody ever reads a part of one."""
        with closing(self._each(self._write, parts)) as results:
            for number, result in results:
                try:
                    result.result()
                except StoreError as error:
                    yield number, error
                else:
                    yield number, None

    def delete(self, places: Sequence[Place]) -> None:
        """Delete objects, one by one: not all servers can delete several."""
        with closing(self._each(self._delete, places)) as results:
            for _, result in results:
                result.result()

    def scan(self) -> Iterator[tuple[Place, bytes]]:
        """Find nothing: other depots write to the bucket as well, so it is asked."""
        return iter(())

    def close(self) -> None:
        """Wait for the requests that are under way. The interpreter would crash if it ended before them."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _has(self, name: bytes) -> bool:
        path = self._path(name)
        return self._asked(lambda: self._obstore.head(self._bucket, path)) is not None

    def _read(self, wanted: _Range) -> bytes | None:
        """Receive a range. Return the bytes of the record in it. None: the object is absent, or of another length."""
        path = self._path(wanted.part.place.name)
        options = {} if wanted.end - wanted.begin == wanted.object_bytes else {"range": (wanted.begin, wanted.end)}

        def received() -> bytes | None:
            found = self._obstore.get(self._bucket, path, options=options)
            if found.meta["size"] != wanted.object_bytes:
                return None
            return _received(found.stream(min_chunk_size=PIECE_BYTES), wanted)

        return self._asked(received)

    def _write(self, part: Part) -> None:
        path = self._path(part.place.name)
        body = b"".join((part.record, part.data))
        if self._asked(lambda: self._obstore.put(self._bucket, path, body, use_multipart=False)) is None:
            raise StoreError(f"the server has no place for {path}")

    def _delete(self, place: Place) -> None:
        path = self._path(place.name)
        self._asked(lambda: self._obstore.delete(self._bucket, path))

    def _path(self, name: bytes) -> str:
        """Return the path of an object. Its first part spreads objects over the partitions of a bucket."""
        key = name.hex()
        return self._named(f"{key[:2]}/{key}")

    def _named(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _each(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[int, Future[Result]], None, None]:
        """Do work for each item, in threads. Yield each result with its number as soon as it is there.

        Work that has not begun when the time is over fails. Once this is closed, no thread touches an item.
        """
        give_up_at = time.monotonic() + self._call_seconds

        def done_in_time(item: Item) -> Result:
            if time.monotonic() > give_up_at:
                raise StoreError("the server was too slow for as many requests")
            return work(item)

        numbers: dict[Future[Result], int] = {}
        try:
            for number, item in enumerate(items):
                numbers[self._threads.submit(done_in_time, item)] = number
            for result in as_completed(numbers):
                yield numbers[result], result
        finally:
            for result in numbers:
                result.cancel()
            wait(numbers)

    def _asked(self, request: Callable[[], Result]) -> Result | None:
        """Return what a request returns. None: there is no such object.

        Raises: StoreError.
        """
        errors = self._obstore.exceptions
        try:
            return request()
        except FileNotFoundError as error:  # obstore raises it for 404
            if "NoSuchBucket" in str(error):
                raise StoreUnusable(_line(error)) from error
            return None
        except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
            if any(word in str(error) for word in _FULL):
                raise StoreFull(_line(error)) from error
            raise StoreUnusable(f"{_line(error)} (needed are {RIGHTS})") from error
        except errors.BaseError as error:
            if _TOO_SHORT in str(error):
                return None
            raise _typed(error) from error
        except BaseException as error:
            # A panic of the library's Rust code is no Exception. It is this request's failure, and not the process's.
            if type(error).__name__ != "PanicException":
                raise
            raise StoreError(_line(error)) from error


def _typed(error: Exception) -> StoreError:
    line = _line(error)
    if any(word in str(error) for word in _FULL):
        return StoreFull(line)
    if "169.254.169.254" in line:  # where a machine of AWS would find its role
        return StoreUnusable(
            f"no credentials: name a credentials_file, or set AWS_ACCESS_KEY_ID and its secret ({line})"
        )
    if "region" in line:
        return StoreUnusable(line)
    return StoreError(line)


def _line(error: BaseException) -> str:
    """Return what an error of obstore says, without its debugging details and the markup of the server's answer."""
    text = str(error).partition("\n\nDebug source")[0]
    return " ".join(text.split())[:MAX_ERROR_CHARACTERS]


def _num_ranges(part: Part) -> int:
    return -(-(RECORD_BYTES + part.chunk_bytes) // RANGE_BYTES)


def _ranges(number: int, part: Part) -> Iterator[_Range]:
    end = RECORD_BYTES + part.chunk_bytes
    for begin in range(0, end, RANGE_BYTES):
        yield _Range(number, part, begin, min(begin + RANGE_BYTES, end))


def _received(pieces: Iterable[memoryview], wanted: _Range) -> bytes:
    """Copy the pieces of a range to where they belong in the slot. Return the bytes of the record in it."""
    head = bytearray()
    at = wanted.begin
    for piece in pieces:
        view = memoryview(piece)
        if at + len(view) > wanted.end:
            raise StoreError("the server sent more than was asked for")
        in_record = view[: max(RECORD_BYTES - at, 0)]
        head += in_record
        at += len(in_record)
        view = view[len(in_record) :]
        wanted.part.slot[at - RECORD_BYTES : at - RECORD_BYTES + len(view)] = view
        at += len(view)
    if at != wanted.end:
        raise StoreError("the server sent less than it announced")
    return bytes(head)

"""A bucket: who may use it, what a chunk is called in it, and what is no answer."""

from __future__ import annotations

import http.server
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.tiers.address.address import TierAddress
from service.tiers.store import Part, Place, Role, StoreContext, StoreError, StoreFull, StoreUnusable
from service.tiers.stores.s3 import RANGE_BYTES, S3Store
from service.tiers.stores.s3_bucket import CredentialsFile
from tests.servers.process import free_port
from tests.servers.s3 import BUCKET, S3Server, s3_server

Open = Callable[..., S3Store]
RECORD = b"r" * 128
NAME = bytes(range(32))
KEYS = "aws_access_key_id = key\naws_secret_access_key = hidden\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    file = tmp_path / "credentials"
    file.write_text(f"[default]\n{KEYS}")
    return file


@pytest.fixture
def open_store(credentials: Path) -> Iterator[Open]:
    """`open_store(endpoint)` opens a store until the test ends."""
    with ExitStack() as stack:

        def opened(
            endpoint: str, bucket: str = BUCKET, file: Path | None = None, role: Role = Role.READ, seconds: float = 10
        ) -> S3Store:
            options = f"endpoint={endpoint}&region=us-east-1&credentials_file={file or credentials}"
            address = TierAddress.parse(f"s3://{bucket}?{options}")
            store = S3Store(StoreContext(address=address, role=role, l1=memoryview(b"")), call_seconds=seconds)
            stack.callback(store.close)
            return store

        yield opened


def part(data: bytes = b"a chunk of some bytes", name: bytes = NAME) -> Part:
    return Part(Place(name), memoryview(bytearray(data)), len(data), RECORD)


def test_a_chunk_is_an_object_whose_name_is_its_key(server: S3Server, open_store: Open) -> None:
    list(open_store(server.endpoint).write_from([part(b"bytes")]))
    assert server.request("GET", f"00/{NAME.hex()}") == RECORD + b"bytes"


def test_a_bucket_that_is_not_there_makes_a_store_unusable(server: S3Server, open_store: Open) -> None:
    with pytest.raises(StoreUnusable, match="NoSuchBucket"):
        open_store(server.endpoint, bucket="no-such-bucket")


def test_credentials_that_the_server_refuses_make_a_store_unusable(open_store: Open, tmp_path: Path) -> None:
    with (
        s3_server(tmp_path, checks_credentials=True) as server,
        pytest.raises(StoreUnusable, match=r"403.*s3:GetObject") as error,
    ):
        open_store(server.endpoint)
    assert "hidden" not in str(error.value)


def test_a_server_that_is_not_there_is_an_error_that_may_end(open_store: Open) -> None:
    with pytest.raises(StoreError) as error:
        open_store(f"http://127.0.0.1:{free_port()}")
    assert not isinstance(error.value, StoreUnusable)
    assert "\n" not in str(error.value)


def test_a_panic_of_the_library_is_an_error(open_store: Open) -> None:
    with pytest.raises(StoreError):  # it has no answer to a host such as bucket.127.0.0.1
        open_store("http://127.0.0.1:1&path_style=false")


def test_without_the_package_a_store_is_unusable(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreUnusable, match=re.escape("install kvdepot[s3]")):
        open_store("http://127.0.0.1:1")


@pytest.mark.parametrize(
    "text",
    [
        f"[default]\n{KEYS}",
        f"# a comment\n[other]\naws_access_key_id = x\n[default]\n{KEYS}aws_session_token = t%oken\n",
        f"# no section\n{KEYS}",
        "AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=hidden\n",
    ],
)
def test_credentials_are_read_as_awss_tools_write_them(credentials: Path, text: str) -> None:
    credentials.write_text(text)
    found = CredentialsFile(str(credentials))()
    assert (found["access_key_id"], found["secret_access_key"]) == ("key", "hidden")
    assert found["token"] == ("t%oken" if "token" in text else None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hidden", "no lines"),
        (f"[other]\n{KEYS}", "no aws_access_key_id"),
        ("[default]\naws_access_key_id = key\n", "no aws_access_key_id and aws_secret"),
        ("", "no aws_access_key_id"),
    ],
)
def test_a_file_without_credentials_makes_a_store_unusable_and_is_not_quoted(
    server: S3Server, open_store: Open, credentials: Path, text: str, says: str
) -> None:
    credentials.write_text(text)
    with pytest.raises(StoreUnusable, match=says) as error:
        open_store(server.endpoint)
    assert "hidden" not in str(error.value)


def test_a_missing_file_of_credentials_makes_a_store_unusable(open_store: Open, tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="credentials_file"):
        open_store("http://127.0.0.1:1", file=tmp_path / "nothing")


def test_more_questions_than_requests_at_a_time_are_all_answered(server: S3Server, open_store: Open) -> None:
    names = [number.to_bytes(32, "big") for number in range(100)]
    list(open_store(server.endpoint, role=Role.WRITE).write_from([part(name=name) for name in names[::2]]))
    assert list(open_store(server.endpoint, role=Role.ASK).exists(names)) == [True, False] * 50


def test_a_chunk_that_is_read_in_ranges_has_the_bytes_of_each(server: S3Server, open_store: Open) -> None:
    data = bytearray(2 * RANGE_BYTES + 100)
    for at in range(0, len(data), RANGE_BYTES // 3):
        data[at : at + 4] = at.to_bytes(4, "big")
    store = open_store(server.endpoint, seconds=30)
    list(store.write_from([part(bytes(data))]))
    read, longer = part(bytes(len(data))), part(bytes(3 * RANGE_BYTES))
    assert sorted(store.read_into([read, longer])) == [(0, RECORD), (1, None)]
    assert bytes(read.data) == data


class BadServer(http.server.BaseHTTPRequestHandler):
    """Answers as the object's name wants it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with 404, or with what is wrong."""
        name = self.path.rpartition("/")[2]
        if name == "probe":
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        answers: dict[str, tuple[int, bytes, int]] = {
            b"\0".hex(): (200, RECORD + b"good", 132),
            b"\1".hex(): (200, RECORD, 132),
            b"\2".hex(): (503, b"<Error><Code>SlowDown</Code></Error>", -1),
            b"\3".hex(): (200, RECORD, 128),
            b"\4".hex(): (200, RECORD[:10], 10),
            b"\5".hex(): (200, RECORD + b"more than that", 142),
        }
        status, body, length = answers[name]
        self._answer(status, body, length)

    def do_PUT(self) -> None:
        """Refuse."""
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith(b"\0".hex()):
            self._answer(403, b"<Error><Code>QuotaExceeded</Code></Error>")
        elif self.path.endswith(b"\1".hex()):
            self._answer(507, b"<Error><Code>XMinioStorageFull</Code></Error>")
        else:
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes, length: int = -1) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 01:49:10 GMT")
        self.send_header("ETag", '"x"')
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = len(body) != length


@contextmanager
def bad_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def bad_endpoint() -> Iterator[str]:
    with bad_server() as endpoint:
        yield endpoint


@pytest.mark.parametrize("name", [b"\1", b"\2"])
def test_what_the_server_does_not_send_is_an_error_after_all_that_it_sends(
    bad_endpoint: str, open_store: Open, name: bytes
) -> None:
    good = [part(bytes(4), b"\0") for _ in range(12)]  # more than there are requests at a time
    results = open_store(bad_endpoint, seconds=2).read_into([part(bytes(4), name), *good])
    assert sorted(next(results) for _ in good) == [(number, RECORD) for number in range(1, 13)]
    assert {bytes(each.data) for each in good} == {b"good"}
    with pytest.raises(StoreError):
        next(results)


@pytest.mark.parametrize("name", [b"\3", b"\4", b"\5"])
def test_an_object_of_another_length_is_absent(bad_endpoint: str, open_store: Open, name: bytes) -> None:
    read = part(bytes(4), name)
    assert list(open_store(bad_endpoint).read_into([read])) == [(0, None)]
    assert bytes(read.data) == bytes(4)


@pytest.mark.parametrize(("name", "is_full"), [(b"\0", True), (b"\1", True), (b"\2", False)])
def test_a_server_without_space_is_full_and_not_broken(
    bad_endpoint: str, open_store: Open, name: bytes, is_full: bool
) -> None:
    [(_, error)] = open_store(bad_endpoint, seconds=2).write_from([part(name=name)])
    assert isinstance(error, StoreError)
    assert isinstance(error, StoreFull) == is_full

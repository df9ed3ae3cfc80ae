"""moto's server, which speaks S3: from PyPI, in a venv of its own. It keeps objects in its memory."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.real_servers import servers_python
from tests.servers.process import ServerProcess, accepts, free_port, running

BUCKET = "chunks"
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=, Signature=",
    "Content-Type": "application/octet-stream",
}
"""moto lets in whoever has a signature, and does not look at it."""


class S3Server(ServerProcess):
    """A server with one bucket, which is empty after each start.

    With `checks_credentials` it refuses the access keys that it does not know: all.
    """

    def __init__(self, folder: Path, *, checks_credentials: bool = False) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        super().__init__(
            [servers_python("moto"), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            is_ready=lambda: accepts(self.port),
            log=folder / "moto.log",
            # Of all requests, only the one that makes the bucket is let in without a question.
            environment={"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checks_credentials else {},
        )

    def start(self) -> None:
        """Start the server, and make the bucket."""
        super().start()
        self.request("PUT", "")

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Send a request about an object of the bucket, without a client."""
        url = f"{self.endpoint}/{BUCKET}/{path}".rstrip("/")
        request = urllib.request.Request(url, data=body, headers=SIGNED if path else {}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def s3_server(folder: Path, *, checks_credentials: bool = False) -> Iterator[S3Server]:
    """Run a server during the block."""
    server = S3Server(folder, checks_credentials=checks_credentials)
    with running(server):
        yield server

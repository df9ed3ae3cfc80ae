"""A depot with a console, and requests to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from contextlib import closing
from typing import Any
from urllib.parse import urlencode, urlsplit

from kvdepot.v1 import observability_pb2


def free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Answer:
    """What the console answered."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def json(self) -> Any:
        """The values of a JSON body."""
        return json.loads(self.body)


def request(
    url: str, path: str, *, method: str = "GET", token: str = "", tls: ssl.SSLContext | None = None, **headers: str
) -> Answer:
    """Send a request, and return the answer. It blocks. A `_` in a header's name stands for a dash."""
    parts = urlsplit(url)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["authorization"] = f"Bearer {token}"
    address = str(parts.hostname), parts.port
    connection = (
        http.client.HTTPSConnection(*address, timeout=20, context=tls)
        if parts.scheme == "https"
        else http.client.HTTPConnection(*address, timeout=20)
    )
    with closing(connection):
        connection.request(method, path, headers=sent)
        return Answer(connection.getresponse())


async def ask(server: Any, question: str, *, token: str = "", **parameters: Any) -> Any:
    """Return what the console of a server answers to a question, which must be 200."""
    answer = await asked(server, f"/api/{question}?{urlencode(parameters)}", token=token)
    assert answer.status == 200, answer.body
    return answer.json


async def asked(server: Any, path: str, **options: Any) -> Answer:
    """Send a request to the console of a server."""
    assert server.console is not None
    return await asyncio.to_thread(request, server.console.url, path, **options)


async def report_session(call: Any, session_id: str) -> None:
    """Begin a session by a report of its blocks."""
    record = observability_pb2.BlockAllocationRecord(session_id=session_id, block_ids=[1], token_ids=range(4))
    await call(
        "ReportBlockAllocation",
        observability_pb2.ReportBlockAllocationRequest(instance_id="i", model_name="m", block_size=4, records=[record]),
    )

"""Clients that leave during an answer are no fault of the depot: nothing is logged, no refusal is counted.

gRPC reports in either order that a client left and that its answer failed. These tests take the order in which
the failure comes first; with real clients about one call in 50,000 does so.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from service.access.access import Access
from service.access.credentials import Context
from service.depot.slices import Slices
from service.errors import NoMessage
from service.rpc.admission import Admission
from service.rpc.interceptor import Interceptor
from service.rpc.refusals import Refusals
from service.rpc.status import abort
from service.settings import Settings

WATCH = "/grpc.health.v1.Health/Watch"
LOGGING = """
import logging
import grpc
from service.observability.output import Output
from service.setting_types import LogFormat, LogLevel

Output.detached().log_as(LogFormat.TEXT, LogLevel.INFO)
for error in (grpc.aio.InternalError("the batch failed"), ValueError("a bug")):
    logging.getLogger("grpc._cython.cygrpc").error("raised by servicer method", exc_info=error)
"""


class LeftCall:
    """A call after its client sent the request and left."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def read(self) -> bytes:
        return bytes(health_pb2.HealthCheckRequest().SerializeToString())

    async def write(self, _: Any) -> None:
        raise grpc.aio.InternalError("the batch failed")

    async def abort(self, *_: Any, **__: Any) -> None:
        raise grpc.aio.InternalError("the batch failed")


class Details(grpc.HandlerCallDetails):
    method = WATCH
    invocation_metadata = ()


LEFT = cast(Context, LeftCall())


async def test_a_stream_whose_client_left_ends_as_a_cancelled_one(caplog: pytest.LogCaptureFixture) -> None:
    async def watch(_: Any, context: Context) -> None:
        await context.write(health_pb2.HealthCheckResponse())

    async def handler(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_stream_rpc_method_handler(
            cast(Any, watch), request_deserializer=health_pb2.HealthCheckRequest.FromString
        )

    refusals = Refusals(None)
    interceptor = Interceptor(
        Access(Settings.model_construct(), None),
        Admission(max_concurrent_rpcs=1, max_attachments=1),
        lambda _: pytest.fail("a probe has no quota"),
        refusals,
        None,
        Slices(),
        max_message_bytes=1 << 20,
        open_reflection=False,
    )
    served = await interceptor.intercept_service(handler, Details())
    assert served is not None
    with pytest.raises(asyncio.CancelledError):
        await cast(Any, served).stream_stream(None, LEFT)
    assert not refusals.num_refused
    assert not caplog.records


async def test_a_refusal_after_the_client_left_ends_as_a_cancelled_call() -> None:
    with pytest.raises(asyncio.CancelledError):
        await abort(LEFT, NoMessage("the call ended without a request"))


def test_grpc_logs_bugs_and_not_clients_that_left() -> None:
    process = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, timeout=60, check=True)
    assert "a bug" in process.stderr
    assert "the batch failed" not in process.stderr

"""Metrics as a collector receives them over OTLP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from kvdepot import allocation_record
from telemetry.metrics.definitions import METRICS
from telemetry.metrics.kv_event_definitions import KV_EVENT_METRICS
from telemetry.metrics.recording_definitions import RECORDING_METRICS
from tests.e2e.collector import attributes
from tests.e2e.engines import site
from tests.e2e.scraping import measured, work
from tests.e2e.servers import running_server
from tests.fakes.waiting import eventually

SLOT_BYTES = 4_096


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps the last export of each metric. It answers while `answers` is set."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.num_exports = 0
        self.resource: dict[str, Any] = {}
        self.metrics: dict[str, Metric] = {}
        self.answers = asyncio.Event()
        self.answers.set()

    async def Export(self, request: Any, context: object) -> Any:
        await self.answers.wait()
        for of_resource in request.resource_metrics:
            self.resource = attributes(of_resource.resource)
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    self.metrics[metric.name] = metric
        self.num_exports += 1
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Return the points of a metric, with their attributes."""
        metric = self.metrics[name]
        data = getattr(metric, metric.WhichOneof("data") or "")
        return [(attributes(point), point) for point in data.data_points]


@asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    collector = Collector()
    server = grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        await server.stop(grace=None)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with running_collector() as running:
        yield running


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Export ten times a second."""
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    yield


async def test_a_collector_gets_what_was_measured_when_the_depot_ends(collector: Collector) -> None:
    flags = measured(otlp_endpoint=collector.endpoint, l1_size=2 * SLOT_BYTES, l0_sample_rate=1.0)
    async with running_server(flags) as server:
        assert server.prometheus_address is None
        async with site(server) as depot:
            engine = await depot.attach(model_name="llama")
            for seed in (1, 2, 1):
                await work(engine, "s", 40, seed)
                await engine.end_session("s")
            for session_id, token in (("a", 1), ("b", 2)):
                record = [allocation_record(session_id, block_ids=[0], token_ids=[token])]
                await depot.client.report_block_allocation("e", "llama", 1, record)
                await depot.client.end_session("e", session_id)
    assert collector.num_exports == 1
    assert collector.resource["service.name"] == "kvdepot"
    assert collector.metrics.keys() <= {metric.name for metric in METRICS}
    without_attributes = {metric.name for metric in METRICS if not metric.attributes and not metric.boundaries}
    not_here = {"kvdepot.tls.certificate.time_left", "kvdepot.sizing.depot_hit_ratio"}  # it is too early for the latter
    not_here |= {metric.name for metric in (*RECORDING_METRICS, *KV_EVENT_METRICS)}
    assert collector.metrics.keys() >= without_attributes - not_here

    by_kind = {metric.name: metric for metric in METRICS}
    for name, metric in collector.metrics.items():
        declared = by_kind[name]
        assert metric.WhichOneof("data") == {"counter": "sum"}.get(declared.kind, declared.kind)
        assert (metric.unit, metric.description) == (declared.unit, declared.description)
        if declared.kind != "gauge":
            data = metric.sum if declared.kind == "counter" else metric.histogram
            assert data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE

    stores = {"operation": "store", "outcome": "ok", "model_name": "llama"}
    assert [point.as_int for at, point in collector.points("kvdepot.operations") if at == stores] == [3]
    [duration] = [point for at, point in collector.points("kvdepot.operation.duration") if at == stores]
    assert duration.count == sum(duration.bucket_counts) == 3
    assert len(duration.bucket_counts) == len(duration.explicit_bounds) + 1
    assert 0 < duration.min <= duration.max <= duration.sum
    assert 0 < duration.start_time_unix_nano < duration.time_unix_nano
    for name, count in (("lifetime", 4), ("idle_before_evict", 4), ("reuse_after_evict", 2), ("reuse_gap", 6)):
        [(at, point)] = collector.points(f"kvdepot.l1.chunk.{name}")
        assert (at, point.count) == ({"model_name": "llama", "tier": "l1"}, count), name
    [(at, point)] = collector.points("kvdepot.l0.block.lifetime")
    assert (at, point.count) == ({"instance_id": "e", "model_name": "llama"}, 1)
    rpcs = {at["rpc.method"]: point.count for at, point in collector.points("rpc.server.call.duration")}
    assert rpcs["kvdepot.v1.CacheService/Store"] == 3


@pytest.mark.usefixtures("often")
async def test_a_collector_gets_them_again_and_again(collector: Collector) -> None:
    async with running_server(measured(otlp_endpoint=collector.endpoint)) as server, site(server) as depot:
        engine = await depot.attach()
        await engine.lookup("s", [1])
        await eventually(lambda: "kvdepot.operations" in collector.metrics)
        await engine.lookup("s", [2])
        await eventually(lambda: collector.points("kvdepot.operations")[0][1].as_int == 2)


@pytest.mark.usefixtures("often")
async def test_a_depot_whose_collector_is_down_serves_and_ends() -> None:
    async with running_collector() as collector:
        endpoint = collector.endpoint
    async with (
        asyncio.timeout(30),
        running_server(measured(otlp_endpoint=endpoint)) as server,
        site(server) as depot,
    ):
        engine = await depot.attach()
        for _ in range(20):
            await engine.lookup("s", [1])


@pytest.mark.usefixtures("often")
async def test_a_collector_that_does_not_answer_holds_up_no_call_and_no_end(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    collector.answers.clear()
    async with (
        asyncio.timeout(20),
        running_server(measured(otlp_endpoint=collector.endpoint)) as server,
        site(server) as depot,
    ):
        engine = await depot.attach()
        await work(engine, "s", 32, seed=1)
    assert collector.num_exports == 0

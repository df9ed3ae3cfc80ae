"""The connector's statistics in vLLM's own metrics: on its `/metrics` page, and in its log."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from kvdepot.connector.metric_definitions import METRICS, MetricDefinition, MetricKind
from kvdepot.connector.snapshots import Snapshot

METRIC_PREFIX = "vllm:kvdepot_"


class KvdepotStats(KVConnectorStats):
    """A snapshot, as vLLM carries it from its scheduler to its frontend. `data` are the snapshot's values."""

    @property
    def snapshot(self) -> Snapshot:
        """The values as a snapshot, which changes them."""
        return Snapshot(self.data)

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.snapshot.merge(Snapshot(other.data))
        return self

    def reduce(self) -> dict[str, int | float]:
        return self.snapshot.summary()

    def is_empty(self) -> bool:
        return self.snapshot.is_empty


class KvdepotPromMetrics(KVConnectorPromMetrics):
    """The metrics of all engines of one frontend. vLLM's labels come first: the model and the engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._metrics = {name: self._made(definition) for name, definition in METRICS.items()}
        for name, definition in METRICS.items():
            for engine in per_engine_labelvalues:
                for labels in definition.series:  # they are 0 until something happens
                    self._series(name, engine, labels)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for sample in Snapshot(transfer_stats_data).samples():
            series = self._series(sample.name, engine_idx, sample.labels)
            for value in sample.values:
                match METRICS[sample.name].kind:
                    case MetricKind.COUNTER:
                        series.inc(value)
                    case MetricKind.GAUGE:
                        series.set(value)
                    case MetricKind.HISTOGRAM:
                        series.observe(value)

    def _made(self, definition: MetricDefinition) -> Any:
        facts = {
            "name": METRIC_PREFIX + definition.name,
            "documentation": definition.text,
            "labelnames": [*self._labelnames, *definition.labels],
        }
        match definition.kind:
            case MetricKind.COUNTER:
                return self._counter_cls(**facts)
            case MetricKind.GAUGE:  # of several frontends, the last one that heard of a change knows
                return self._gauge_cls(**facts, multiprocess_mode="mostrecent")
            case MetricKind.HISTOGRAM:
                return self._histogram_cls(**facts, buckets=definition.buckets)

    def _series(self, name: str, engine: int, labels: tuple[str, ...]) -> Any:
        return self._metrics[name].labels(*self.per_engine_labelvalues[engine], *labels)


def register(connector: type) -> None:
    """Let vLLM find the class by its name. A MultiConnector's frontend finds the statistics' class in this way."""
    try:
        KVConnectorFactory.get_connector_class_by_name(connector.__name__)
    except ValueError:
        KVConnectorFactory.register_connector(connector.__name__, connector.__module__, connector.__name__)

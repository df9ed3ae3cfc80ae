"""The page that Prometheus scrapes, and the server for it, in threads of its own."""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from telemetry.metrics.instruments import HistogramPoint
from telemetry.metrics.metric import Metric, prometheus_stem, prometheus_unit
from telemetry.metrics.snapshot import Snapshots

logger = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0  # for a client to send its request and to take the answer
END_POLL_SECONDS = 0.1


class CannotServeMetrics(Exception):
    """The address is in use, or not one of this machine."""


class Page(CollectorRegistry):
    """The page. One is made at a time, because OpenTelemetry's collector mixes up simultaneous ones."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def collect(self) -> Iterable[Family]:
        """Return all families."""
        with self._making:
            return list(super().collect())

    def restricted_registry(self, names: Iterable[str]) -> Page:  # type: ignore[override]  # it collects
        """Return the whole page for any names: the names of a collector are not known before it collects."""
        return self


class HistogramCollector(Collector):
    """A collector of our histograms, under the names that OpenTelemetry's exporter would give them."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def describe(self) -> Iterable[Family]:
        """Return nothing. Without this method the registry would collect when it registers this."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Return the histograms that have values."""
        return [_family(metric, points) for metric, points in self._snapshots.points() if points]


class PrometheusEndpoint:
    """A server of a page at `address` (HOST:PORT, the port that the system chose for port 0) under any path.

    Raises: CannotServeMetrics.
    """

    def __init__(self, host: str, port: int, page: Page) -> None:
        shown_host = f"[{host}]" if ":" in host else host
        try:
            self._server = _serve(host, port, page)
        except OSError as error:
            raise CannotServeMetrics(
                f"{shown_host}:{port}, where metrics would be served, is taken, or not an address of this machine"
            ) from error
        self.address = f"{shown_host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(END_POLL_SECONDS,), name="prometheus", daemon=True
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<PrometheusEndpoint {self.address}>"

    def close(self) -> None:
        """Stop. Takes up to `END_POLL_SECONDS`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    """A server that does not look up its own name, unlike http.server's: the look-up may take seconds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Log an error that is a bug: anything but a client that left or was too slow."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("the page for Prometheus could not be made")


def _serve(host: str, port: int, page: Page) -> _Server:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    handler = type("Handler", (MetricsHandler,), {"registry": page, "timeout": CLIENT_SECONDS})
    server_class = type("Server", (_Server,), {"address_family": family})
    server: _Server = server_class(address[:2], handler)
    return server


def _family(metric: Metric, points: Sequence[HistogramPoint]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        prometheus_stem(metric.name),
        metric.description,
        labels=[name.replace(".", "_") for name in metric.attribute_names],
        unit=prometheus_unit(metric.unit),
    )
    ends = [*map(floatToGoString, metric.boundaries), "+Inf"]
    for point in points:
        cumulated = accumulate(point.bucket_counts)
        family.add_metric(list(point.attributes), list(zip(ends, cumulated, strict=True)), point.sum)
    return family

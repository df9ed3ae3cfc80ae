"""The page that Prometheus scrapes, and a server for it in threads of its own."""

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

from telemetry.metrics.array_histogram import HistogramPoint
from telemetry.metrics.metric import ReadableHistogram, prometheus_stem, prometheus_unit
from telemetry.metrics.snapshot import Snapshots

logger = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0  # for a client to send its request and to take the answer
END_POLL_SECONDS = 0.1


class CannotServeMetrics(Exception):
    """The address is taken, or not one of this machine."""


class Page(CollectorRegistry):
    """What is served. Made one at a time: OpenTelemetry's collector mixes up those that are made at once."""

    def __init__(self) -> None:
        super().__init__()
        self._making = threading.Lock()

    def collect(self) -> Iterable[Family]:
        """All families."""
        with self._making:
            return list(super().collect())

    def restricted_registry(self, names: Iterable[str]) -> Page:  # type: ignore[override]  # it collects, too
        """The whole page, whatever a client asks for: what a collector has is not known before it collects."""
        return self


class HistogramCollector(Collector):
    """Adds our histograms to a page, named as OpenTelemetry's exporter names the rest of it."""

    def __init__(self, readings: Snapshots) -> None:
        self._readings = readings

    def describe(self) -> Iterable[Family]:
        """Nothing; who has no such method is asked to collect when it is registered."""
        return ()

    def collect(self) -> Iterable[Family]:
        """The histograms that have values."""
        return [_family(histogram, points) for histogram, points in self._readings.histograms() if points]


class PrometheusEndpoint:
    """Serves a page at ``address``, HOST:PORT, with the port that was chosen. Any path will do.

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
        """Serve no more; takes up to `END_POLL_SECONDS`."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingTCPServer):
    """Unlike http.server's it does not look up its own name, which may take seconds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away or dawdled is no news; anything else is a bug."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("the page for Prometheus could not be made")


def _serve(host: str, port: int, page: Page) -> _Server:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    handler = type("Handler", (MetricsHandler,), {"registry": page, "timeout": CLIENT_SECONDS})
    server_class = type("Server", (_Server,), {"address_family": family})
    server: _Server = server_class(address[:2], handler)
    return server


def _family(histogram: ReadableHistogram, points: Sequence[HistogramPoint]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        prometheus_stem(histogram.name),
        histogram.description,
        labels=[name.replace(".", "_") for name in histogram.attribute_names],
        unit=prometheus_unit(histogram.unit),
    )
    ends = [*map(floatToGoString, histogram.boundaries), "+Inf"]
    for point in points:
        cumulated = accumulate(point.bucket_counts)
        family.add_metric(list(point.attributes), list(zip(ends, cumulated, strict=True)), point.sum)
    return family

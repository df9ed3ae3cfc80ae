"""The resource of OpenTelemetry that names this server to the receivers of telemetry."""

from __future__ import annotations

from uuid import uuid4

from opentelemetry.sdk.resources import Resource


def server_resource(version: str) -> Resource:
    """Return a resource for this run of the server. OTEL_RESOURCE_ATTRIBUTES adds attributes of its place."""
    return Resource.create({"service.name": "kvdepot", "service.version": version, "service.instance.id": str(uuid4())})

"""Who telemetry comes from, as its receivers are told."""

from __future__ import annotations

from uuid import uuid4

from opentelemetry.sdk.resources import Resource


def server_resource(version: str) -> Resource:
    """This run of the server; the variable OTEL_RESOURCE_ATTRIBUTES adds what is known of the place where it runs."""
    return Resource.create({"service.name": "kvdepot", "service.version": version, "service.instance.id": str(uuid4())})

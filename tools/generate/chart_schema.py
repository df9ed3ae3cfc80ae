"""The parts of values.schema.json that are made: settings, from the server's model of them, and alerts."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

from service.settings import Settings
from tools.generate.chart_alerts import alert_rules_schema

SET_BY_THE_CHART = MappingProxyType(
    {
        "listen": "service.port, service.bindAddress",
        "unix_socket_mode": "unixSocketMode",
        "unix_socket_owner": "unixSocketOwner",
        "tls_cert": "tls.secretName",
        "tls_key": "tls.secretName",
        "tls_client_ca": "tls.clientCASecretName",
        "tenants": "tenants.secretName",
        "l1_file": "l1.file",
        "l2": "l2",
        "prometheus_host": "service.bindAddress",
        "prometheus_port": "metrics.port",
        "kv_events": "kvEvents.enabled, kvEvents.port",
        "kv_events_replay": "kvEvents.enabled, kvEvents.replayPort",
    }
)
"""Settings that the chart refuses under ``settings``, and the values from which it sets them."""


def settings_schema() -> dict[str, Any]:
    """Return a JSON schema of the settings that a user of the chart may give."""
    model = Settings.model_json_schema()
    fields = {name: _field(field, model["$defs"]) for name, field in model["properties"].items()}
    fields["l1_size"]["type"].append("null")  # as the profile says
    return {
        "type": "object",
        "additionalProperties": False,
        # The pod's grace period follows from this.
        "required": ["drain_timeout"],
        "properties": {name: field for name, field in fields.items() if name not in SET_BY_THE_CHART},
    }


def values_schema(chart: Path) -> str:
    """Return the chart's values.schema.json with new parts about settings and alerts."""
    schema = json.loads((chart / "values.schema.json").read_text())
    schema["properties"]["settings"] = settings_schema()
    schema["properties"]["alerts"]["properties"]["rules"] = alert_rules_schema(chart)
    return json.dumps(schema, indent=2) + "\n"


def _field(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the value's schema without references. A flat schema makes Helm's messages short."""
    parts = field.get("anyOf", [definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field])
    flat = {name: value for part in parts for name, value in part.items() if name not in ("title", "default", "type")}
    types = [part["type"] for part in parts]
    return {"type": types[0] if len(types) == 1 else types, **flat, "description": field["description"]}

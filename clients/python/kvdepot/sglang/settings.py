"""The settings of the backend, as a user writes them into SGLang's extra config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvdepot.connector.config import PREFIX, ConfigError, ConnectorConfig

SOURCE = "--hicache-storage-backend-extra-config"
MAX_INSTANCE_BYTES = 128  # room for the names of ranks and pools behind it
_USED = frozenset(
    (
        *("address", "model_name", "model_revision", "lease_hold_seconds", "prefill_tokens_per_second"),
        *(f"{what}_timeout_seconds" for what in ("attach", "lookup", "retrieve", "store")),
        *("token_file", "tls", "ca_file", "certificate_file", "key_file", "server_name", "plain_tcp"),
    )
)
_INSTANCE_ID = f"{PREFIX}instance_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSettings:
    """What a user has set. `instance_id` is empty if the ranks have to agree on one themselves."""

    connector: ConnectorConfig
    instance_id: str


def backend_settings(extra_config: Mapping[str, Any] | None, environment: Mapping[str, str]) -> BackendSettings:
    """Read the settings. Keys that do not begin with `kvdepot.` are SGLang's.

    Raises: ConfigError.
    """
    given = dict(extra_config or {})
    instance_id = given.pop(_INSTANCE_ID, "")
    faults = []
    if not isinstance(instance_id, str) or len(instance_id.encode()) > MAX_INSTANCE_BYTES:
        faults.append(f"{_INSTANCE_ID}: text of at most {MAX_INSTANCE_BYTES} bytes is expected, not {instance_id!r}")
    unused = {f"{PREFIX}{field.name}" for field in fields(ConnectorConfig) if field.name not in _USED}
    faults += [f"{key} has no effect with SGLang" for key in sorted(unused & set(given))]
    ours = _USED | {"instance_id"}
    faults += [f"{key} is not a setting of SGLang; did you mean {PREFIX}{key}?" for key in sorted(ours & set(given))]
    if not given.get("interface_v1"):
        faults.append(
            'set "interface_v1": 1; without it SGLang copies every page once more, and this backend has no pages'
        )
    if given.get("allocator") != "shm":
        faults.append('set "allocator": "shm", so that the depot can map SGLang\'s host memory')
    config = ConnectorConfig.of(given, environment, source=SOURCE)
    if not config.address.startswith("unix:") and not config.certificate_file:
        faults.append(
            f"{PREFIX}address: the depot takes SGLang's memory over a unix socket, or over TLS from a client with a "
            f"certificate, not from {config.address!r}"
        )
    if faults:
        raise ConfigError(f"{SOURCE}: " + "; ".join(faults))
    return BackendSettings(connector=config, instance_id=instance_id)

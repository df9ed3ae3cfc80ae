"""What a user may set in `kv_connector_extra_config`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from kvdepot.credentials import Bearer, Credentials
from kvdepot.memory.shared_buffer import By

PREFIX = "kvdepot."
DEFAULT_ADDRESS = "unix:/run/kvdepot/kvdepot.sock"
ADDRESS_VARIABLE = "KVDEPOT_ADDRESS"


class ConfigError(ValueError):
    """A setting is unknown, or its value is not one; vLLM refuses to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """Each field is a key of `kv_connector_extra_config`, after ``kvdepot.``."""

    address: str = DEFAULT_ADDRESS
    """Of the depot; without it the variable KVDEPOT_ADDRESS counts."""
    model_name: str = ""
    """Names the weights, in place of their path, revision and files; what else makes KV differ is always covered."""
    share_memory_by: By = "name"
    """How the KV cache of a CPU is shared: by ``name`` in /dev/shm, or by ``fd`` (one pid namespace, one user)."""
    report_blocks: bool = True
    """Whether the depot is told which blocks the scheduler gave to whom, for the metrics of L0."""
    attach_timeout_seconds: float = 10.0
    """How long the engine's start waits for the depot; it goes on without it after that."""
    lookup_timeout_seconds: float = 1.0
    """How long a request waits for the answers to its lookups; it is computed after that."""
    retrieve_timeout_seconds: float = 10.0
    """How long a request waits for its chunks; it is computed after that."""
    store_timeout_seconds: float = 30.0
    """How long blocks are kept for a store."""
    lease_hold_seconds: float = 5.0
    """How long found chunks stay leased for a request that vLLM finds no room for."""
    token_file: str = ""
    """A bearer token, for a depot that has tenants. This and what follows are `kvdepot.credentials.Credentials`."""
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""
    plain_tcp: bool = False

    @classmethod
    def of(cls, extra_config: Mapping[str, Any], environment: Mapping[str, str]) -> ConnectorConfig:
        """Reads what the user wrote; keys without the prefix are of others.

        Raises:
            ConfigError: with all that is wrong.
        """
        known = {field.name: field.type for field in fields(cls)}
        values: dict[str, Any] = {}
        if address := environment.get(ADDRESS_VARIABLE):
            values["address"] = address
        faults = []
        for key, value in extra_config.items():
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX)
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {PREFIX}{close[0]}?" if close else f"; there are {', '.join(sorted(known))}"
                faults.append(f"{key} is not a setting{hint}")
            elif fault := _fault(str(known[name]), value):
                faults.append(f"{key}: {fault}, not {value!r}")
            else:
                values[name] = value
        config = cls(**values)
        try:
            Bearer(config.credentials)  # reads the token
            config.credentials.channel_credentials(config.address)  # and the certificates
        except (ValueError, OSError) as error:
            faults.append(str(error))
        if faults:
            raise ConfigError("kv_connector_extra_config: " + "; ".join(faults))
        return config

    @property
    def credentials(self) -> Credentials:
        """What to show the depot, and to ask of it."""
        return Credentials(
            token_file=self.token_file or None,
            tls=self.tls,
            ca_file=self.ca_file or None,
            certificate_file=self.certificate_file or None,
            key_file=self.key_file or None,
            server_name=self.server_name,
            plain_tcp=self.plain_tcp,
        )


def _fault(expected: str, value: Any) -> str | None:
    """What is expected of a value of this type, unless it is that."""
    match expected:
        case "bool":
            return None if isinstance(value, bool) else "true or false is expected"
        case "float":
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = is_number and math.isfinite(value) and value > 0
            return None if fits else "a positive number of seconds is expected"
        case "By":
            names = get_args(By)
            return None if value in names else f"one of {', '.join(names)} is expected"
        case _:
            return None if isinstance(value, str) and value else "text is expected"

"""The settings of a connector, as a user writes them into the engine's configuration."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, get_args

from kvdepot.credentials import Bearer, Credentials
from kvdepot.memory.shared_buffer import By

PREFIX = "kvdepot."
DEFAULT_ADDRESS = "unix:/run/kvdepot/kvdepot.sock"
ADDRESS_VARIABLE = "KVDEPOT_ADDRESS"


MAX_TOKENS_PER_SECOND = 1e12  # the depot takes no more

Count: TypeAlias = int
"""A whole number of at least 0."""

Rate: TypeAlias = float
"""A number from 0 to `MAX_TOKENS_PER_SECOND`."""


class ConfigError(ValueError):
    """A setting is unknown or has a wrong value; the engine refuses to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorConfig:
    """Each field is a key, after `kvdepot.`."""

    address: str = DEFAULT_ADDRESS
    """Address of the depot; if it is not set, the variable KVDEPOT_ADDRESS counts."""
    model_name: str = ""
    """Name of the model, in place of its name or path. Other facts that make KV differ still count."""
    model_revision: str = ""
    """Revision of the weights, in place of their commit or their files. Another one is needed when they change."""
    training_run: str = ""
    """Name of the training run that updates the weights. Engines with equal runs and weight versions share KV."""
    reset_means_new_weights: bool = True
    """Whether a reset of the engine's cache, the connector's included, says that the weights may be other ones."""
    head_shards: Count = 0
    """How many shards the KV heads have. Engines share if their tensor-parallel sizes divide it. 0: one per worker."""
    share_memory_by: By = "name"
    """How the depot opens a CPU's KV cache: by `name` in /dev/shm, or by `fd` (one pid namespace, one user)."""
    report_blocks: bool = True
    """Whether to report which blocks each request gets, for the metrics of L0."""
    attach_timeout_seconds: float = 10.0
    """How long the engine's start waits for the depot; then it goes on without it."""
    lookup_timeout_seconds: float = 1.0
    """How long a request waits for the answers to its lookups; then it is computed."""
    retrieve_timeout_seconds: float = 10.0
    """How long a request waits for its chunks; then it is computed."""
    store_timeout_seconds: float = 30.0
    """How long a store may take; its blocks are not freed meanwhile."""
    lease_hold_seconds: float = 5.0
    """How long found chunks stay leased while the engine has no free blocks for the request."""
    prefill_tokens_per_second: Rate = 0.0
    """How many tokens of prompts the engine computes in a second; 0: the connector measures it."""
    store_prompts_only: bool = False
    """Whether to store chunks of prompts only, and none that has generated tokens."""
    publish_blocks: bool = True
    """Whether the engine's KV events have the blocks that are in the depot, if the engine publishes events."""
    token_file: str = ""
    """File of a bearer token, for a depot with tenants. This and all below are `kvdepot.credentials.Credentials`."""
    tls: bool = False
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    server_name: str = ""
    plain_tcp: bool = False

    @classmethod
    def of(cls, extra_config: Mapping[str, Any], environment: Mapping[str, str], *, source: str) -> ConnectorConfig:
        """Read the user's settings. Keys without the prefix are ignored. `source` names the settings in messages.

        The error has all faults.

        Raises: ConfigError.
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
            raise ConfigError(f"{source}: " + "; ".join(faults))
        return config

    @property
    def credentials(self) -> Credentials:
        """The client's credentials, and the authorities that it trusts."""
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
    """Return what is expected of a value of this type, or None if the value is right."""
    match expected:
        case "bool":
            return None if isinstance(value, bool) else "true or false is expected"
        case "float":
            fits = _is_number(value) and value > 0
            return None if fits else "a positive number of seconds is expected"
        case "Rate":
            fits = _is_number(value) and 0 <= value <= MAX_TOKENS_PER_SECOND
            return None if fits else f"a number from 0 to {MAX_TOKENS_PER_SECOND:g} is expected"
        case "Count":
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            return None if fits else "a whole number of at least 0 is expected"
        case "By":
            names = get_args(By)
            return None if value in names else f"one of {', '.join(names)} is expected"
        case _:
            return None if isinstance(value, str) and value else "text is expected"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

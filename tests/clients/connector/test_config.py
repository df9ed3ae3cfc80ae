"""The connector's settings: read, checked, and all of them in the docs."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from kvdepot.connector.config import ConfigError, ConnectorConfig


def read(settings: dict[str, Any], environment: dict[str, str]) -> ConnectorConfig:
    return ConnectorConfig.of(settings, environment, source="extra_config")


def test_settings_are_read_and_others_keys_are_left_alone() -> None:
    config = read({"kvdepot.address": "unix:/d.sock", "kvdepot.report_blocks": False, "other": 1}, {})
    assert config == replace(ConnectorConfig(), address="unix:/d.sock", report_blocks=False)


@pytest.mark.parametrize("rate", [0, 2500, 0.5])
def test_rate_of_prefill_is_a_number(rate: float) -> None:
    assert read({"kvdepot.prefill_tokens_per_second": rate}, {}).prefill_tokens_per_second == rate


def test_address_of_the_environment_counts_unless_one_is_set() -> None:
    environment = {"KVDEPOT_ADDRESS": "depot:1"}
    assert read({}, {}).address == "unix:/run/kvdepot/kvdepot.sock"
    assert read({}, environment).address == "depot:1"
    assert read({"kvdepot.address": "depot:2"}, environment).address == "depot:2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kvdepot.adress": "x"}, "did you mean kvdepot.address?"),
        ({"kvdepot.zzz": 1}, "kvdepot.zzz is not a setting; there are address"),
        ({"kvdepot.address": ""}, "kvdepot.address: text is expected, not ''"),
        ({"kvdepot.report_blocks": "yes"}, "true or false is expected, not 'yes'"),
        ({"kvdepot.lookup_timeout_seconds": 0}, "a positive number of seconds is expected, not 0"),
        ({"kvdepot.lookup_timeout_seconds": True}, "a positive number of seconds is expected, not True"),
        ({"kvdepot.lookup_timeout_seconds": float("inf")}, "a positive number of seconds is expected, not inf"),
        ({"kvdepot.prefill_tokens_per_second": -1}, "a number from 0 to 1e+12 is expected, not -1"),
        ({"kvdepot.prefill_tokens_per_second": 2e12}, "a number from 0 to 1e+12 is expected, not 2000000000000.0"),
        ({"kvdepot.prefill_tokens_per_second": "auto"}, "a number from 0 to 1e+12 is expected, not 'auto'"),
        ({"kvdepot.prefill_tokens_per_second": float("nan")}, "a number from 0 to 1e+12 is expected, not nan"),
        ({"kvdepot.head_shards": -1}, "kvdepot.head_shards: a whole number of at least 0 is expected, not -1"),
        ({"kvdepot.head_shards": True}, "a whole number of at least 0 is expected, not True"),
        ({"kvdepot.head_shards": 2.0}, "a whole number of at least 0 is expected, not 2.0"),
        ({"kvdepot.share_memory_by": "magic"}, "one of name, fd is expected, not 'magic'"),
        ({"kvdepot.token_file": "/no/such/token"}, "/no/such/token"),
        ({"kvdepot.address": "depot:1", "kvdepot.ca_file": "/no/such/ca"}, "/no/such/ca"),
        ({"kvdepot.key_file": "/key"}, "certificate_file and key_file: give both or none"),
        ({"kvdepot.address": "depot:1", "kvdepot.token_file": "/dev/null"}, "a token is not sent over TCP without TLS"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(settings, {})
    assert message in str(caught.value)


def test_all_faults_are_in_one_error() -> None:
    with pytest.raises(ConfigError, match=r"adress.*report_blocks"):
        read({"kvdepot.adress": "x", "kvdepot.report_blocks": 1}, {})


def test_every_setting_is_in_the_docs_with_its_default() -> None:
    text = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
    for field in fields(ConnectorConfig):
        assert f"kvdepot.{field.name}`" in text or f"`.{field.name}`" in text, field.name
        if field.name.endswith("_seconds"):
            assert f"| `kvdepot.{field.name}` | {field.default:g} |" in text, field.name

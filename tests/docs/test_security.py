"""SECURITY.md: its file of tenants is one, its settings and names are real."""

from __future__ import annotations

import re
from pathlib import Path

from service.access.tenants import TenantLimits
from service.access.tenants_file import parse_tenants
from service.settings import Settings
from telemetry.events import EVENT_TYPES
from telemetry.metrics.definitions import METRICS

PAGE = (Path(__file__).parents[2] / "SECURITY.md").read_text()
L1_BYTES = 64 << 30
DISK_BYTES = 100 << 30
DEFAULTS = TenantLimits(max_concurrent_rpcs=1, max_attachments=1, max_bytes_in_flight=1, max_pinned_bytes=11)


def test_the_file_of_tenants_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    tenants = parse_tenants(block.encode(), DEFAULTS, L1_BYTES, DISK_BYTES)
    assert {name: tenant.is_admin for name, tenant in tenants.by_name.items()} == {
        "chat": False,
        "search": False,
        "operators": True,
    }
    assert tenants.by_name["chat"].limits.max_bytes_in_flight == 2 << 30


def test_flags_and_settings_are_the_servers() -> None:
    (block,) = re.findall(r"```\n(kvdepot serve.*?)```", PAGE, re.DOTALL)
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z-]+)", block)}
    named = {"unix_socket_mode", "unix_socket_owner", "tokens_over_plain_tcp", "open_reflection", "prometheus_port"}
    assert len(flags) == 5
    assert flags | named <= set(Settings.model_fields)
    assert all(f"`{name}`" in PAGE for name in named)


def test_events_and_metrics_are_there() -> None:
    assert "`FileRefused`" in PAGE
    assert {"FileRefused", "CallDenied"} <= set(EVENT_TYPES)
    named = set(re.findall(r"`(kvdepot_[a-z0-9_]+)`", PAGE))
    assert named == {"kvdepot_files_broken", "kvdepot_access_denied_total", "kvdepot_l1_unzeroed_bytes"}
    assert named <= {metric.prometheus_name for metric in METRICS}


def test_every_path_is_there() -> None:
    paths = re.findall(r"`((?:service|tests|benchmarks)/[a-z_/]+\.py)`", PAGE)
    assert paths
    assert all((Path(__file__).parents[2] / path).is_file() for path in paths)

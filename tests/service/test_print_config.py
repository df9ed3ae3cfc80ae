"""The printed configuration explains each setting, and is read back as the same settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.load_settings import load
from service.print_config import annotated_yaml
from service.settings import Settings

GIVEN: dict[str, Any] = {
    "listen": ("[::]:50051", "unix:/run/a b.sock"),
    "unix_socket_mode": "0660",
    "unix_socket_owner": ":1000",
    "tls_cert": "/etc/tls/#1: ü.pem",
    "tls_key": "'quoted'",
    "tenants": "/etc/kvdepot/tenants.yaml",
    "open_reflection": True,
    "l1_size": "20.5 GiB",
    "l1_huge_pages": "none",
    "l2": ("disk:///var/lib/kv%20depot?size=1.5TiB&name=nvme0", "s3://bucket?region=a,b"),
    "l2_write": "evicted",
    "max_message_size": "5000000",
    "lease_ttl": "250ms",
    "session_idle_timeout": 1234.5678,
    "drain_timeout": "0",
    "l0_sample_rate": 1e-05,
    "subscriber": ('csv:writer={"path": "/tmp/a, b.csv"}', "d:e"),
    "otlp_endpoint": "http://localhost:4317",
    "log_format": "json",
}


def values(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Settings.model_fields}


def read_back(text: str, folder: Path) -> Settings:
    path = folder / "kvdepot.yaml"
    path.write_text(text)
    return load({}, path)


@pytest.mark.parametrize("given_settings", [{}, GIVEN], ids=["defaults", "given"])
def test_a_file_of_settings_is_read_back_as_they_are(given_settings: dict[str, Any], tmp_path: Path) -> None:
    settings = load(given_settings)
    again = read_back(annotated_yaml(settings), tmp_path)
    assert values(again) == values(settings)
    assert again.model_fields_set == settings.model_fields_set
    assert annotated_yaml(again) == annotated_yaml(settings)


def test_with_the_defaults_switched_on_it_is_the_same(tmp_path: Path) -> None:
    settings = load(GIVEN)
    text = annotated_yaml(settings).replace("\n#:", "\n")
    again = read_back(text, tmp_path)
    assert values(again) == values(settings)
    assert again.model_fields_set == set(Settings.model_fields)


@hypothesis_settings(max_examples=25)
@given(
    seconds=st.floats(0.001, 3e7) | st.integers(1, 10**7).map(float),
    num_bytes=st.integers(4_096, 1 << 44) | st.integers(1, 1 << 20).map(lambda mib: mib << 20),
)
def test_no_size_and_no_time_is_rounded(
    seconds: float, num_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = load({"lease_ttl": seconds, "l1_size": num_bytes})
    again = read_back(annotated_yaml(settings), tmp_path_factory.getbasetemp())
    assert (again.lease_ttl, again.l1_size) == (seconds, num_bytes)


def test_the_command_prints_what_is_given_and_comments_out_the_rest() -> None:
    printed = CliRunner().invoke(
        app, ["serve", "--print-config", "--l1-size", "20480MiB"], env={"KVDEPOT_LISTEN": "a:1"}
    )
    assert printed.exit_code == 0
    lines = printed.stdout.splitlines()
    assert "l1_size: 20GiB" in lines
    assert "listen: ['a:1']" in lines
    assert "#:chunk_size: 256" in lines
    assert "#:lease_ttl: 60s" in lines
    assert lines[lines.index("#:chunk_size: 256") - 1].startswith("# ")
    assert max(map(len, lines)) <= 80
    names = [line.removeprefix("#:").partition(":")[0] for line in lines if line and not line.startswith("# ")]
    assert sorted(names) == sorted(Settings.model_fields)


def test_bad_settings_are_not_printed() -> None:
    printed = CliRunner().invoke(app, ["serve", "--print-config", "--chunk-size", "0"])
    assert (printed.exit_code, printed.stdout) == (2, "")
    assert printed.stderr == "kvdepot: bad settings\nchunk_size: is not at least 1 (given: '0')\n"

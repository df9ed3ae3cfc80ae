"""Settings: flags override the environment, YAML and defaults. A wrong setting is named, and nothing starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvdepot.cli.app import app
from service.l1.arena import HugePages
from service.load_settings import BadSettings, load
from service.misspelt import misspelt
from service.setting_types import LogLevel
from service.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("KVDEPOT_"):
            monkeypatch.delenv(name)
    yield


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    return tmp_path / "kvdepot.yaml"


def values(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in Settings.model_fields}


def serve(*flags: str, **environment: str) -> Any:
    """Run `serve` with settings that it refuses; accepted ones would start a server."""
    return CliRunner().invoke(app, ["serve", *flags], env=environment)


# Where a value comes from


def test_without_a_source_a_setting_has_its_default() -> None:
    settings = load({})
    assert values(settings) == values(Settings.model_construct())
    assert settings.listen == ("127.0.0.1:50051",)
    assert settings.l1_size == 4 << 30


def test_a_file_overrides_the_default(yaml: Path) -> None:
    yaml.write_text("chunk_size: 512\nl1_size: 8GiB\n")
    settings = load({}, yaml)
    assert (settings.chunk_size, settings.l1_size, settings.lease_ttl) == (512, 8 << 30, 60.0)


def test_the_environment_overrides_a_file(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml.write_text("chunk_size: 512\nlease_ttl: 5m\n")
    monkeypatch.setenv("KVDEPOT_CHUNK_SIZE", "1024")
    settings = load({}, yaml)
    assert (settings.chunk_size, settings.lease_ttl) == (1024, 300.0)


def test_a_flag_overrides_the_environment(yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml.write_text("chunk_size: 512\n")
    monkeypatch.setenv("KVDEPOT_CHUNK_SIZE", "1024")
    monkeypatch.setenv("KVDEPOT_LEASE_TTL", "90s")
    settings = load({"chunk_size": "2048"}, yaml)
    assert (settings.chunk_size, settings.lease_ttl) == (2048, 90.0)


@pytest.mark.parametrize("source", ["flags", "environment", "file"])
def test_every_setting_can_come_from_every_source(source: str, yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "listen": "127.0.0.1:1, unix:/run/a.sock",
        "l1_size": "1MiB",
        "l1_huge_pages": "none",
        "lease_ttl": "250ms",
        "disable_logging": "true",
        "log_level": "debug",
        "l0_sample_rate": "0.5",
    }
    if source == "environment":
        for name, value in given.items():
            monkeypatch.setenv(f"KVDEPOT_{name.upper()}", value)
    if source == "file":
        yaml.write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
    settings = load(given if source == "flags" else {}, yaml if source == "file" else None)
    assert settings.listen == ("127.0.0.1:1", "unix:/run/a.sock")
    assert (settings.l1_size, settings.l1_huge_pages, settings.lease_ttl) == (1 << 20, HugePages.NONE, 0.25)
    assert (settings.disable_logging, settings.log_level, settings.l0_sample_rate) == (True, LogLevel.DEBUG, 0.5)


def test_addresses_in_a_file_may_be_a_list(yaml: Path) -> None:
    yaml.write_text("listen: ['[::]:50051', 'unix:/run/a.sock']\n")
    assert load({}, yaml).listen == ("[::]:50051", "unix:/run/a.sock")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(yaml: Path, text: str) -> None:
    yaml.write_text(text)
    assert values(load({}, yaml)) == values(load({}))


def test_other_variables_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVDEPOT_SERVICE_HOST", "10.0.0.1")  # from Kubernetes, for a Service named kvdepot
    monkeypatch.setenv("KVDEPOT_PORT", "tcp://10.0.0.1:50051")
    assert values(load({})) == values(load({"log_level": "info"}))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).chunk_size = 1


def test_described_settings_are_read_back_as_they_are() -> None:
    settings = load(
        {
            "l1_size": "1536MiB",
            "lease_ttl": "250ms",
            "listen": "a:1,b:2",
            "l2": ("s3://bucket?region=x,y", "valkey://h"),
        }
    )
    described = settings.described()
    assert set(described) == set(Settings.model_fields)
    assert values(load(described)) == values(settings)


def test_arguments_of_subscribers_are_not_described() -> None:
    settings = load({"subscriber": ('a.b:c={"token": "hunter2"}', "d:e")})
    assert settings.described()["subscriber"] == '["a.b:c", "d:e"]'


def test_tiers_are_in_the_order_in_which_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}).tier_addresses() == ()
    given = ("disk:///d?size=1GiB", "s3://bucket?endpoint=http://a,b")
    assert [each.name for each in load({"l2": given}).tier_addresses()] == ["disk", "s3"]
    monkeypatch.setenv("KVDEPOT_L2", given[1])
    assert [each.kind for each in load({}).tier_addresses()] == ["s3"]
    monkeypatch.setenv("KVDEPOT_L2", json.dumps(given))
    assert load({}).l2 == given
    monkeypatch.setenv("KVDEPOT_L2", "")
    assert load({}).l2 == ()


# What is refused

BAD = {
    "listen": ["", "localhost", "localhost:", "localhost:http", "50051", "127.0.0.1:70000", "unix:"],
    "unix_socket_mode": ["", "rw", "999", "60٠", "0o600", "1777", "-1"],
    "unix_socket_owner": ["a b", ":", "a:", "a:b:c"],
    "tls_cert": ["cert.pem"],
    "tls_key": ["key.pem"],
    "tls_client_ca": ["ca.pem"],
    "tokens_over_plain_tcp": ["x"],
    "open_reflection": ["x"],
    "tenant_max_concurrent_rpcs": ["0", "all"],
    "tenant_max_attachments": ["0"],
    "tenant_max_bytes_in_flight": ["0", "all"],
    "l1_size": ["0", "4095", "-1", "much", "8XB"],
    "l1_huge_pages": ["", "yes", "2MiB"],
    "l2": ["/var/lib/kvdepot", "disk:///var/lib/kvdepot", "ftp://host/path", "[disk://"],
    "l2_write": ["", "first-touch"],
    "eviction": ["", "fifo"],
    "chunk_size": ["0", "-16", "1.5", "2000000", "many"],
    "verify": ["", "on", "lookups"],
    "scrub_rate": ["-1", "fast", "1MiB/s"],
    "cache_epoch": ["-1", "1.5", "many", str(1 << 63)],
    "transfer_threads": ["0", "257"],
    "lease_ttl": ["0", "-1s", "soon", "1000000000000d"],
    "pin_ttl_max": ["0", "-1s", "soon", "367d"],
    "session_idle_timeout": ["0s", "never"],
    "max_wait": ["0", "-1"],
    "drain_timeout": ["-1s", "x"],
    "max_concurrent_rpcs": ["0", "all"],
    "max_attachments": ["0"],
    "max_message_size": ["0", "1TiB", "big"],
    "disable_observability": ["maybe"],
    "disable_logging": ["2"],
    "event_queue_size": ["0", "1000000000000"],
    "tenant_max_pinned": ["-0.1", "0.6", "nan", "10%"],
    "l0_sample_rate": ["-0.1", "1.1", "nan"],
    "subscriber": ["csv", "csv:", ":writer", "csv:writer=", "csv:writer=[1]", "csv:writer={", "[x", "a b:c", "../x:y"],
    "prometheus_host": ["", "a b"],
    "prometheus_port": ["-1", "65536"],
    "otlp_endpoint": ["localhost:4317", "ftp://collector", "unix:/run/otlp.sock"],
    "disable_metrics": ["x"],
    "health_without_metrics": ["perhaps"],
    "disable_activity": ["x"],
    "console_port": ["-1", "65536", "on"],
    "console_host": ["", "a b"],
    "record_trace_size": ["0", "1023KiB", "all"],
    "kv_events": ["5557", "localhost:5557", "tcp://*", "tcp://:5557", "tcp://*:70000", "udp://*:5557", "ipc://"],
    "kv_events_replay": ["5558", "tcp://*:5558"],
    "kv_events_format": ["", "json"],
    "kv_events_hashes": ["", "hex"],
    "kv_events_topic": ["kv@{pod}", "kv@{pod", "kv@{node}@{model}", "{model.x}", "{}"],
    "kv_events_pod": ["a b", "a@b"],
    "kv_events_tenants": ["red,blue", "*"],
    "kv_events_memory": ["0", "1023KiB", "all"],
    "kv_events_replay_size": ["0", "1KiB", "all"],
    "enable_tracing": ["x", "true"],
    "trace_console": ["x", "true"],
    "log_format": ["", "xml"],
    "cuda_staging_size": ["0", "1KiB", "2TiB"],
    "cuda_staging_slots": ["1", "65"],
    "cuda_max_ctas": ["0", "1025"],
    "cuda_over_tcp": ["x"],
    "log_level": ["", "loud"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_reported_with_its_name(name: str, value: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load({name: value})
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert not re.search(
        "invalid literal|could not convert|base 8|^subscriber: Expecting", str(caught.value)
    )  # Python's words


def test_every_setting_that_can_be_bad_is_in_the_table() -> None:
    assert set(Settings.model_fields) - set(BAD) <= {"otlp_endpoint", "tenants", "l1_file", "record_trace"}


@pytest.mark.parametrize("given", ["valkey://me:hunter2@host", "[hunter2", ["valkey://host?password=hunter2"], 7])
def test_a_secret_in_a_tiers_address_is_not_repeated(given: object) -> None:
    with pytest.raises(BadSettings, match=r"^l2: ") as caught:
        load({"l2": given})
    assert "hunter2" not in str(caught.value)


def test_all_faults_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVDEPOT_CHUNK_SIZE", "0")
    result = serve("--l1-size", "much")
    assert result.exit_code == 2
    reported = result.stderr.splitlines()
    assert reported[0] == "kvdepot: bad settings"
    assert sorted(line.partition(":")[0] for line in reported[1:]) == ["chunk_size", "l1_size"]


def test_a_bad_value_from_a_file_is_reported_with_its_name(yaml: Path) -> None:
    yaml.write_text("lease_ttl: soon\n")
    with pytest.raises(BadSettings, match=r"^lease_ttl: .*'soon'"):
        load({}, yaml)


@pytest.mark.parametrize("name", ["chunksize", "chunk-size", "CHUNK_SIZE_", "serve"])
def test_an_unknown_key_of_a_file_is_reported_with_its_name(yaml: Path, name: str) -> None:
    yaml.write_text(f"{name}: 1\n")
    with pytest.raises(BadSettings, match=rf"^{name}: "):
        load({}, yaml)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("chunksize", "chunk_size"), ("l1-siz", "l1_size"), ("LOG-LEVEL", "log_level"), ("colour", "")],
)
def test_an_unknown_key_of_a_file_is_reported_with_the_nearest_setting(yaml: Path, name: str, nearest: str) -> None:
    yaml.write_text(f"{name}: 1\n")
    with pytest.raises(BadSettings) as caught:
        load({}, yaml)
    assert str(caught.value) == f"{name}: is no setting" + (f"; is {nearest} meant?" if nearest else "")


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("l1_size", "1KiB", "is not at least 4KiB (given: 1KiB)"),
        ("max_message_size", "20.5GiB", "is not at most 1GiB (given: 20.5GiB)"),
        ("lease_ttl", "400d", "is not at most 366d (given: 400d)"),
        ("lease_ttl", "0", "is not above 0s (given: 0s)"),
        ("chunk_size", "0", "is not at least 1 (given: '0')"),
        ("prometheus_port", "65536", "is not at most 65535 (given: '65536')"),
    ],
)
def test_a_bound_is_named_in_the_units_of_the_setting(name: str, value: str, fault: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load({name: value})
    assert str(caught.value) == f"{name}: {fault}"


@pytest.mark.parametrize("text", ["20GiB", "20 GiB", "20Gi", "20480MiB", 21_474_836_480, "21474836480"])
def test_a_size_may_be_written_in_each_usual_way(text: str | int) -> None:
    settings = load({"l1_size": text})
    assert (settings.l1_size, settings.described()["l1_size"]) == (20 << 30, "20GiB")


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "just text", "\x00", "a: 1\n\tb: 2"])
def test_a_file_that_is_no_mapping_is_refused_in_few_words(yaml: Path, text: str) -> None:
    yaml.write_text(text)
    with pytest.raises(BadSettings, match=r"^config: "):
        load({}, yaml)


@pytest.mark.parametrize("data", [b"\xff\xfe\xfd", b"chunk_size: \xe9"])
def test_a_file_that_is_no_text_is_refused(yaml: Path, data: bytes) -> None:
    yaml.write_bytes(data)
    with pytest.raises(BadSettings, match=r"^config: "):
        load({}, yaml)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"^config: .*nothing\.yaml is not a file"):
        load({}, tmp_path / "nothing.yaml")
    assert serve("--config", str(tmp_path)).exit_code == 2
    assert serve(KVDEPOT_CONFIG=str(tmp_path / "nothing.yaml")).exit_code == 2


def test_a_file_of_a_tier_that_is_not_there_refuses_the_start(tmp_path: Path) -> None:
    result = serve(
        "--l2", f"valkey://cache?password_file={tmp_path}/none&secret_file={tmp_path}", "--l2", "s3://bucket"
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "kvdepot: bad settings",
        f"l2: valkey://cache:6379: password_file={tmp_path}/none: No such file or directory",
        f"l2: valkey://cache:6379: secret_file={tmp_path}: it is no regular file",
    ]


def test_an_unknown_flag_is_refused() -> None:
    result = serve("--chunksize", "1")
    assert result.exit_code == 2
    assert "--chunksize" in result.stderr


# Variables that are no settings


def test_a_misspelt_variable_is_found_with_the_right_one() -> None:
    variables = {"KVDEPOT_L1_SIZ": "8GiB", "KVDEPOT_LEASE_TLL": "1s", "kvdepot_chunk_sizes": "1"}
    assert dict(misspelt(variables)) == {
        "KVDEPOT_L1_SIZ": "KVDEPOT_L1_SIZE",
        "KVDEPOT_LEASE_TLL": "KVDEPOT_LEASE_TTL",
        "kvdepot_chunk_sizes": "KVDEPOT_CHUNK_SIZE",
    }


def test_settings_and_other_variables_are_not_misspelt() -> None:
    names = (*Settings.model_fields, "config", "address", "client_tls_cert", "node", "prometheus_service_port_http")
    links = {
        "KVDEPOT_PORT": "tcp://10.0.0.1:50051",
        "KVDEPOT_PROMETHEUS_PORTS": "tcp://10.0.0.1:9464",
        "KVDEPOT_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "KVDEPOT_PORT_50051_TCP_PROTO": "tcp",
        "KVDEPOT_PORT_50051_TCP_PORT": "50051",
        "KVDEPOT_PORT_50051_TCP_ADDR": "10.0.0.1",
        "KVDEPOT_SERVICE_HOST": "10.0.0.1",
        "KVDEPOT_SERVICE_PORT": "50051",
        "KVDEPOT_SERVICE_PORT_GRPC": "50051",
        "KVDEPOT_PROMETHEUS_SERVICE_HOST": "10.0.0.1",
        "L1_SIZ": "8GiB",
    }
    assert list(misspelt({f"KVDEPOT_{name.upper()}": "1" for name in names} | links)) == []


# The command line


def test_help_names_every_setting() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    for name in ("config", *Settings.model_fields):
        assert f"--{name.replace('_', '-')} " in result.stdout


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []

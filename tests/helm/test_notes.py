"""The notes give the commands to type."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from typing import Any

import pytest

from kvdepot.connector.config import ConnectorConfig
from tests.helm.conftest import Install, Installed
from tests.helm.fake_cluster import WITHOUT_OPERATOR


def line(notes: str, beginning: str) -> str:
    (found,) = [text.strip() for text in notes.splitlines() if text.strip().startswith(beginning)]
    return found


def transfer_config(notes: str) -> dict[str, Any]:
    words = shlex.split(line(notes, "vllm serve"))
    found: dict[str, Any] = json.loads(words[words.index("--kv-transfer-config") + 1])
    return found


def test_without_mapped_memory_the_notes_warn_and_name_no_vllm_command(default: Installed) -> None:
    assert "kv-kvdepot.inference.svc:50051" in default.notes
    assert "NOTE: the depot maps no engine's memory." in default.notes
    assert "vllm serve" not in default.notes


def test_the_notes_give_vllm_the_socket_and_its_pods_needs(install: Install) -> None:
    release = install({"hostAccess": {"unixSocket": True, "hostPID": True, "unixSocketFolder": "/run/x"}})
    config = transfer_config(release.notes)
    assert (config["kv_connector"], config["kv_connector_module_path"]) == ("KvdepotConnector", "kvdepot.vllm")
    assert config["kv_load_failure_policy"] == "recompute"
    connector = ConnectorConfig.of(config["kv_connector_extra_config"], {}, source="notes")
    assert connector.address == release.settings["listen"][1]
    assert "hostPath: {path: /run/x, type: Directory}" in release.notes
    assert "hostPID: true" in release.notes
    assert "NOTE" not in release.notes


def test_the_notes_give_vllm_on_a_cpu_the_service(install: Install) -> None:
    release = install({"hostAccess": {"sharedMemory": True}})
    extra = transfer_config(release.notes)["kv_connector_extra_config"]
    assert extra == {"kvdepot.address": "kv-kvdepot.inference.svc:50051"}
    assert "run as user 10001" in release.notes


def test_the_notes_give_vllm_its_credentials(install: Install) -> None:
    mutual = {"tls": {"secretName": "a", "clientCASecretName": "b"}, "tenants": {"secretName": "c"}}
    files = {"ca_file", "certificate_file", "key_file", "token_file"}
    release = install({**mutual, "hostAccess": {"sharedMemory": True}})
    extra = transfer_config(release.notes)["kv_connector_extra_config"]
    assert extra.keys() == {f"kvdepot.{name}" for name in ("address", *files)}
    assert files < {field.name for field in fields(ConnectorConfig)}
    by_socket = install({**mutual, "hostAccess": {"hostPID": True, "unixSocket": True}})
    extra = transfer_config(by_socket.notes)["kv_connector_extra_config"]
    assert extra.keys() == {"kvdepot.address", "kvdepot.token_file"}  # the socket has no TLS


def test_missing_parts_are_named(install: Install, default: Installed) -> None:
    assert "WARNING: no TLS and no tenants: the pods that networkPolicy lets in" in default.notes
    assert "every pod of the cluster" in install({"networkPolicy": {"enabled": False}}).notes
    assert "WARNING" not in install({"tls": {"secretName": "a"}}).notes
    assert "scraped through a ServiceMonitor" in default.notes
    assert "the cluster has no CRD for it" in install(api_versions=WITHOUT_OPERATOR).notes
    assert "Metrics: none" in install({"settings": {"disable_metrics": True}}).notes
    collected = install({"settings": {"otlp_endpoint": "http://c:4317"}})
    assert "Metrics go to http://c:4317" in collected.notes
    assert "helm --namespace inference test kv --logs" in default.notes
    assert "helm --namespace" not in install({"test": {"enabled": False}}).notes


def test_the_notes_give_grpcurl_its_options(install: Install) -> None:
    mutual = {"secretName": "a", "clientCASecretName": "b"}
    release = install({"tls": mutual, "tenants": {"secretName": "c"}})
    words = shlex.split(line(release.notes, "grpcurl"))
    assert words[words.index("-authority") + 1] == "kv-kvdepot.inference.svc"
    assert {"-cacert", "-cert", "-key"} <= set(words)
    assert "-plaintext" not in words
    assert words[words.index("-H") + 1].startswith("authorization: Bearer ")


def test_with_credentials_the_notes_name_no_command_in_the_pod(install: Install) -> None:
    assert "service status" not in install({"tenants": {"secretName": "c"}, "tls": {"secretName": "a"}}).notes


def test_the_doctor_is_given_the_pods_settings(default: Installed) -> None:
    (config,) = re.findall(r"-- kvdepot doctor --config (\S+)", default.notes)
    assert config == default.container["args"][-1]


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment"])
def test_what_to_wait_for(install: Install, kind: str) -> None:
    notes = install({"kind": kind}).notes
    assert f"kubectl --namespace inference rollout status {kind.lower()}/kv-kvdepot" in notes

"""`helm test`: the pod that stores and retrieves, and the commands of all pods."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.main import get_command

from kvdepot.cli.app import app
from tests.helm.conftest import Install
from tests.helm.releases import gpu


def test_the_test_connects_to_the_address_of_engines(install: Install) -> None:
    (test,) = install({**gpu("runtimeClass"), "nodeSelector": {"a": "b"}, "service": {"port": 6000}}).tests
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = test["spec"]["containers"]
    assert container["args"] == ["selftest", "--address", "kv-kvdepot.inference.svc:6000", "--wait-seconds", "60"]
    assert test["spec"]["nodeSelector"]["a"] == "b"  # traffic is local: it has to be on a node that has a depot
    assert test["spec"]["tolerations"]
    assert not install({"test": {"enabled": False}}).tests


def test_the_test_sends_its_credentials(install: Install) -> None:
    (test,) = install(
        {"tls": {"secretName": "cert"}, "test": {"tokenSecretName": "token", "clientCertSecretName": "client"}}
    ).tests
    (container,) = test["spec"]["containers"]
    flags = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert flags["--tls-ca"] == f"{paths['tls']}/ca.crt"
    assert flags["--tls-cert"] == f"{paths['client']}/tls.crt"
    assert flags["--tls-key"] == f"{paths['client']}/tls.key"
    assert flags["--token-file"] == f"{paths['token']}/token"
    assert not {"--plain-tcp"} & set(container["args"])
    secrets = {found["name"]: found["secret"] for found in test["spec"]["volumes"] if "secret" in found}
    assert secrets["tls"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # not the server's key


def test_the_test_sends_its_token_over_plain_tcp_only_where_the_server_takes_it(install: Install) -> None:
    plain = {"tenants": {"secretName": "tenants-secret"}, "settings": {"tokens_over_plain_tcp": True}}
    (test,) = install({**plain, "test": {"tokenSecretName": "token"}}).tests
    assert test["spec"]["containers"][0]["args"][-1] == "--plain-tcp"


@pytest.mark.parametrize("case", ["plain", "everything shown"])
def test_the_commands_of_the_pods_exist(install: Install, case: str) -> None:
    shown = {"tls": {"secretName": "a"}, "test": {"tokenSecretName": "b", "clientCertSecretName": "c"}}
    release = install(shown if case == "everything shown" else {})
    command_line: Any = get_command(app)
    context = typer.Context(command_line)
    (test,) = release.tests
    words = [container["args"] for container in (release.container, test["spec"]["containers"][0])]
    if case == "everything shown":
        words.append(["health", *release.container["livenessProbe"]["exec"]["command"][3:]])
    for name, *arguments in words:
        command_line.get_command(context, name).make_context(name, arguments, resilient_parsing=False)

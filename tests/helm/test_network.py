"""Addresses and allowed connections."""

from __future__ import annotations

import pytest

from tests.helm.conftest import Install, Installed
from tests.helm.releases import service


@pytest.mark.parametrize("policy", ["Local", "Cluster"])
def test_traffic_policy(install: Install, policy: str) -> None:
    release = install({"service": {"internalTrafficPolicy": policy}})
    assert service(release)["spec"]["internalTrafficPolicy"] == policy


def test_the_servers_addresses(install: Install) -> None:
    assert install().settings["listen"][0] == "0.0.0.0:50051"
    assert install().settings["prometheus_host"] == "0.0.0.0"
    six = install({"service": {"bindAddress": "::", "port": 6000}, "metrics": {"port": 6001}})
    assert six.settings["listen"][0] == "[::]:6000"
    assert (six.settings["prometheus_host"], six.settings["prometheus_port"]) == ("::", 6001)
    assert {port["name"]: port["containerPort"] for port in six.container["ports"]} == {"grpc": 6000, "metrics": 6001}


def test_the_network_policy_lets_in_the_namespace_and_prometheus(default: Installed) -> None:
    policy = default["NetworkPolicy"]["spec"]
    calls, metrics = policy["ingress"]
    assert calls["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    assert {"podSelector": {}} in calls["from"]
    assert metrics == {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_the_network_policy_admits_the_given_peers(install: Install) -> None:
    engines, prometheus = [{"podSelector": {"matchLabels": {"a": "b"}}}], [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    release = install({"networkPolicy": {"engines": engines, "prometheus": prometheus}})
    calls, metrics = release["NetworkPolicy"]["spec"]["ingress"]
    assert calls["from"][:1] == engines
    (test,) = release.tests
    (tester,) = calls["from"][1:]
    assert tester["podSelector"]["matchLabels"].items() <= test["metadata"]["labels"].items()
    assert metrics["from"] == prometheus
    untested = install({"networkPolicy": {"engines": engines}, "test": {"enabled": False}})
    assert untested["NetworkPolicy"]["spec"]["ingress"][0]["from"] == engines
    assert not install({"networkPolicy": {"enabled": False}}).of("NetworkPolicy")


@pytest.mark.parametrize(("endpoint", "port"), [("http://collector:14317", 14317), ("https://collector", 4317)])
def test_the_network_policy_lets_out_telemetry_alone(install: Install, endpoint: str, port: int) -> None:
    egress = install({"settings": {"otlp_endpoint": endpoint}})["NetworkPolicy"]["spec"]["egress"]
    names, telemetry = egress
    assert {rule["port"] for rule in names["ports"]} == {53}
    assert telemetry["ports"] == [{"port": port, "protocol": "TCP"}]
    more = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
    assert install({"networkPolicy": {"egress": more}})["NetworkPolicy"]["spec"]["egress"] == more


def test_kv_events_have_ports_and_admit_the_named_routers_alone(install: Install, default: Installed) -> None:
    assert "kv_events" not in default.settings
    routers = [{"podSelector": {"matchLabels": {"app": "router"}}}]
    release = install({"kvEvents": {"enabled": True}, "networkPolicy": {"routers": routers}})
    assert release.settings["kv_events"] == "tcp://0.0.0.0:5557"
    assert release.settings["kv_events_replay"] == "tcp://0.0.0.0:5558"
    ports = {port["name"]: port["containerPort"] for port in release.container["ports"]}
    assert (ports["kv-events"], ports["kv-replay"]) == (5557, 5558)
    rule = release["NetworkPolicy"]["spec"]["ingress"][2]
    assert [port["port"] for port in rule["ports"]] == ["kv-events", "kv-replay"]
    assert rule["from"] == routers
    six = install(
        {"kvEvents": {"enabled": True}, "service": {"bindAddress": "::"}, "networkPolicy": {"enabled": False}}
    )
    assert six.settings["kv_events"] == "tcp://[::]:5557"

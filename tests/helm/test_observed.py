"""Metrics, alerts and the dashboard: which objects find a depot, and where."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.helm.conftest import CHART, Install, Installed, Manifest
from tests.helm.releases import service, variables


def test_metrics_have_a_service_of_their_own(default: Installed) -> None:
    (metrics,) = [found for found in default.of("Service") if found["spec"].get("clusterIP") == "None"]
    assert metrics["spec"]["publishNotReadyAddresses"] is True
    assert [port["port"] for port in metrics["spec"]["ports"]] == [9464]
    assert [port["name"] for port in service(default)["spec"]["ports"]] == ["grpc"]


@pytest.mark.parametrize(
    "elsewhere", [{"disable_metrics": True}, {"disable_observability": True}, {"otlp_endpoint": "http://c:4317"}]
)
def test_where_none_are_served_there_is_no_port(install: Install, elsewhere: Manifest) -> None:
    release = install({"settings": elsewhere})
    assert len(release.of("Service")) == 1
    assert not release.of("ServiceMonitor")
    assert [port["name"] for port in release.container["ports"]] == ["grpc"]
    assert len(release["NetworkPolicy"]["spec"]["ingress"]) == 1


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule"])
def test_objects_of_the_operator(install: Install, kind: str) -> None:
    value = {"ServiceMonitor": "serviceMonitor", "PrometheusRule": "prometheusRule"}[kind]
    core = ("v1", "apps/v1", "networking.k8s.io/v1")
    with_operator = (*core, "monitoring.coreos.com/v1")
    assert install({"metrics": {value: "auto"}}, api_versions=with_operator).of(kind)
    assert not install({"metrics": {value: "auto"}}, api_versions=core).of(kind)
    assert not install({"metrics": {value: "never"}}, api_versions=with_operator).of(kind)
    labelled = install({"metrics": {value: "always", "labels": {"release": "p"}}})
    assert labelled[kind]["metadata"]["labels"]["release"] == "p"


@pytest.mark.parametrize(
    ("kind", "endpoints", "values"),
    [
        ("ServiceMonitor", "endpoints", {}),
        ("PodMonitor", "podMetricsEndpoints", {"serviceMonitor": "never", "podMonitor": "auto"}),
    ],
)
def test_prometheus_scrapes_as_given_under_the_alerts_job_name(
    install: Install, kind: str, endpoints: str, values: Manifest
) -> None:
    ours = {"targetLabel": "cluster", "replacement": "east"}
    given = {"interval": "7s", "scrapeTimeout": "3s", "honorLabels": True, "metricRelabelings": [{"action": "drop"}]}
    release = install({"metrics": {**values, "endpoint": {**given, "relabelings": [ours]}}})
    assert [found for found, _ in release.objects if found.endswith("Monitor")] == [kind]
    (endpoint,) = release[kind]["spec"][endpoints]
    job, node, last = endpoint.pop("relabelings")
    assert endpoint == {"port": "metrics", **given}
    assert (job["targetLabel"], job["replacement"]) == ("job", "kvdepot")
    assert (node["targetLabel"], node["sourceLabels"]) == ("node", ["__meta_kubernetes_pod_node_name"])
    assert last == ours


def test_without_the_operator_annotations_tell_prometheus_what_to_scrape(install: Install, default: Installed) -> None:
    def annotations(release: Installed) -> dict[str, str]:
        found = release.workload["spec"]["template"]["metadata"]["annotations"]
        return {name: value for name, value in found.items() if name.startswith("prometheus.io/")}

    told = {"prometheus.io/scrape": "true", "prometheus.io/port": "6001", "prometheus.io/path": "/metrics"}
    assert annotations(install({"metrics": {"scrapeAnnotations": True, "port": 6001}})) == told
    assert annotations(default) == {}
    unserved = {"metrics": {"scrapeAnnotations": True}, "settings": {"disable_metrics": True}}
    assert annotations(install(unserved)) == {}


def test_the_dashboards_arrive_as_they_are(install: Install, default: Installed) -> None:
    found = default.objects["ConfigMap", "kv-kvdepot-dashboard"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    files = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert files
    assert found["data"] == files
    for text in found["data"].values():
        json.loads(text)
    metrics = {"dashboardLabels": {"grafana": "yes"}, "dashboardAnnotations": {"grafana_folder": "ml"}}
    other = install({"metrics": metrics}).objects["ConfigMap", "kv-kvdepot-dashboard"]
    assert other["metadata"]["labels"]["grafana"] == "yes"
    assert other["metadata"]["annotations"] == {"grafana_folder": "ml"}
    assert len(install({"metrics": {"dashboard": False}}).of("ConfigMap")) == 1


def test_the_alerts_arrive_as_they_are(default: Installed) -> None:
    files = [yaml.safe_load(path.read_text()) for path in sorted((CHART / "rules").glob("*.yaml"))]
    groups = [group for file in files for group in file["groups"]]
    assert "{{ $labels" in json.dumps(groups)  # which is for Prometheus, and nothing that Helm may fill in
    assert default["PrometheusRule"]["spec"]["groups"] == groups


def test_telemetry_names_its_pod(default: Installed) -> None:
    names = [variable["name"] for variable in default.container["env"]]
    attributes = variables(default)["OTEL_RESOURCE_ATTRIBUTES"]
    for attribute, variable in (("k8s.node.name", "NODE_NAME"), ("k8s.pod.name", "POD_NAME")):
        assert f"{attribute}=$({variable})" in attributes
        assert names.index(variable) < names.index("OTEL_RESOURCE_ATTRIBUTES")  # else it is not replaced

"""The pods and their controller: kind, names, image, probes, values that are passed through."""

from __future__ import annotations

from typing import Any

import pytest

from service.load_settings import load
from tests.helm.conftest import Install, Installed
from tests.helm.releases import mounts, service, variables, volume

SET_IN_THE_IMAGE = {"KVDEPOT_LISTEN", "KVDEPOT_PROMETHEUS_HOST"}


def test_a_daemon_set(default: Installed) -> None:
    assert default.workload["kind"] == "DaemonSet"
    update = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    assert default.workload["spec"]["updateStrategy"] == update
    assert service(default)["spec"]["internalTrafficPolicy"] == "Local"
    assert not default.of("PodDisruptionBudget")


def test_a_deployment(install: Install) -> None:
    release = install({"kind": "Deployment", "replicas": 3, "topologySpreadConstraints": [{"maxSkew": 1}]})
    assert release.workload["kind"] == "Deployment"
    assert release.workload["spec"]["replicas"] == 3
    assert release.workload["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert release["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert service(release)["spec"]["internalTrafficPolicy"] == "Cluster"
    assert release.pod["topologySpreadConstraints"] == [{"maxSkew": 1}]


def test_the_disruption_budget(install: Install) -> None:
    without = {"kind": "Deployment", "podDisruptionBudget": {"enabled": False}}
    assert not install(without).of("PodDisruptionBudget")
    part = {"kind": "Deployment", "podDisruptionBudget": {"maxUnavailable": "25%"}}
    assert install(part)["PodDisruptionBudget"]["spec"]["maxUnavailable"] == "25%"


def test_names(install: Install) -> None:
    assert install(name="kvdepot").workload["metadata"]["name"] == "kvdepot"
    assert install({"nameOverride": "kv"}, name="a").workload["metadata"]["name"] == "a-kv"
    assert install({"fullnameOverride": "cache"}).workload["metadata"]["name"] == "cache"
    long = install({"fullnameOverride": "x" * 63}, name="r" * 53)
    assert {found["metadata"]["name"] for found in long.of("Service")} == {"x" * 63, f"{'x' * 55}-metrics"}


def test_values_of_every_kind_reach_the_server_as_they_are(install: Install) -> None:
    given = {
        "event_queue_size": 10_000_000,
        "tenant_max_bytes_in_flight": 1 << 40,
        "l0_sample_rate": 1e-07,
        "disable_logging": True,
        "subscriber": ['a.b:c={"x": "<&>\u2028\\n"}', "yes"],
        "otlp_endpoint": "http://collector/?a=' # \\ ",
    }
    rendered = install({"settings": given}).settings
    assert float(rendered.pop("l0_sample_rate")) == 1e-07
    assert rendered == {**rendered, **{name: value for name, value in given.items() if name != "l0_sample_rate"}}


def test_probes_are_grpc_and_ask_for_the_process_or_the_service(install: Install) -> None:
    release = install({"probes": {"startupSeconds": 61, "periodSeconds": 7, "failureThreshold": 4}})
    startup, liveness, readiness = (release.container[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    assert startup["grpc"] == liveness["grpc"] == {"port": 50051}
    assert readiness["grpc"] == {"port": 50051, "service": "kvdepot.v1.CacheService"}
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 61
    for probe in (liveness, readiness):
        assert (probe["periodSeconds"], probe["failureThreshold"]) == (7, 4)


def test_with_tls_probes_go_through_the_socket(install: Install) -> None:
    release = install({"tls": {"secretName": "cert"}})
    for name, asked in (("startup", ""), ("liveness", ""), ("readiness", "kvdepot.v1.CacheService")):
        command = release.container[f"{name}Probe"]["exec"]["command"]
        assert command[:3] == ["python", "-m", "kvdepot.cli.health"]
        assert command[3:] == ["--address", release.settings["listen"][1], "--service", asked]


def test_the_image(install: Install) -> None:
    assert install({"image": {"tag": "dev"}}).container["image"] == "kvdepot:dev"
    digest = f"sha256:{'0' * 64}"
    pinned = install({"image": {"repository": "r/k", "tag": "x", "digest": digest, "pullPolicy": "Always"}})
    assert pinned.container["image"] == f"r/k@{digest}"
    assert pinned.container["imagePullPolicy"] == "Always"
    secrets = install({"image": {"pullSecrets": [{"name": "s"}]}})
    for pod in (secrets.pod, secrets.tests[0]["spec"]):
        assert pod["imagePullSecrets"] == [{"name": "s"}]


@pytest.mark.parametrize(
    ("repository", "image"),
    [
        ("kvdepot", "mirror.local:5000/kvdepot:0.1.0"),
        ("team/kvdepot", "mirror.local:5000/team/kvdepot:0.1.0"),
        ("registry.example.com/team/kvdepot", "mirror.local:5000/team/kvdepot:0.1.0"),
    ],
)
def test_a_parents_registry_is_that_of_all_images(install: Install, repository: str, image: str) -> None:
    shared = {"imageRegistry": "mirror.local:5000/", "imagePullSecrets": ["a", {"name": "b"}]}
    own = {"repository": repository, "pullSecrets": [{"name": "b"}, {"name": "c"}]}
    release = install({"global": shared, "image": own, "hostAccess": {"unixSocket": True}})
    for pod in (release.pod, release.tests[0]["spec"]):
        containers = (*pod["containers"], *pod.get("initContainers", ()))
        assert {container["image"] for container in containers} == {image}
        assert pod["imagePullSecrets"] == [{"name": name} for name in "abc"]


def test_variables_of_services_do_not_pass_for_settings(default: Installed) -> None:
    """A Service named kvdepot would set KVDEPOT_PORT and more in each pod."""
    assert default.pod["enableServiceLinks"] is False
    assert {name for name in variables(default) if name.startswith("KVDEPOT_")} == SET_IN_THE_IMAGE


def test_the_addresses_in_the_pods_variables_are_those_of_the_file(
    install: Install, clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the image would override the file."""
    release = install({"service": {"bindAddress": "::", "port": 6000}})
    for name in SET_IN_THE_IMAGE:
        monkeypatch.setenv(name, variables(release)[name])
    settings = load({})
    assert list(settings.listen) == release.settings["listen"]
    assert settings.listen[0] == "[::]:6000"
    assert settings.prometheus_host == release.settings["prometheus_host"] == "::"


@pytest.mark.parametrize(
    ("value", "given", "where"),
    [
        ("priorityClassName", "high", "priorityClassName"),
        ("affinity", {"nodeAffinity": {}}, "affinity"),
        ("nodeSelector", {"a": "b"}, "nodeSelector"),
        ("tolerations", [{"operator": "Exists"}], "tolerations"),
        ("dnsPolicy", "Default", "dnsPolicy"),
        ("dnsConfig", {"options": [{"name": "ndots", "value": "1"}]}, "dnsConfig"),
        ("extraInitContainers", [{"name": "wait", "image": "w"}], "initContainers"),
    ],
)
def test_what_is_passed_through(install: Install, default: Installed, value: str, given: Any, where: str) -> None:
    assert where not in default.pod
    assert install({value: given}).pod[where] == given


def test_what_is_added(install: Install) -> None:
    release = install(
        {
            "extraEnv": [{"name": "A", "value": "b"}],
            "extraVolumes": [{"name": "x", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
            "commonLabels": {"team": "ml"},
            "podLabels": {"zone": "a"},
            "podAnnotations": {"note": "1"},
            "service": {"annotations": {"s": "1"}, "labels": {"t": "2"}},
            "extraArgs": ["--log-level", "debug", '--subscriber=a.b:c={"x": 1}'],
            "extraContainers": [{"name": "side", "image": "s"}],
        }
    )
    assert variables(release)["A"] == "b"
    assert "emptyDir" in volume(release, "x")
    assert mounts(release)["x"] == "/x"
    assert all(manifest["metadata"]["labels"]["team"] == "ml" for manifest in release.all)
    template = release.workload["spec"]["template"]["metadata"]
    assert template["labels"]["zone"] == "a"
    assert template["annotations"]["note"] == "1"
    assert service(release)["metadata"]["annotations"] == {"s": "1"}
    assert service(release)["metadata"]["labels"]["t"] == "2"
    assert release.container["args"][3:] == ["--log-level", "debug", '--subscriber=a.b:c={"x": 1}']
    assert [container["name"] for container in release.pod["containers"]] == ["depot", "side"]


def test_an_init_container_of_ones_own_runs_after_the_charts(install: Install) -> None:
    release = install({"hostAccess": {"unixSocket": True}, "extraInitContainers": [{"name": "wait", "image": "w"}]})
    assert [container["name"] for container in release.pod["initContainers"]] == ["socket-folder", "wait"]


def test_the_update_strategy_replaces_the_charts_as_a_whole(install: Install) -> None:
    assert install({"updateStrategy": {"type": "OnDelete"}}).workload["spec"]["updateStrategy"] == {"type": "OnDelete"}
    recreate = install({"kind": "Deployment", "updateStrategy": {"type": "Recreate"}})
    assert recreate.workload["spec"]["strategy"] == {"type": "Recreate"}
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert install({"updateStrategy": surge}).workload["spec"]["updateStrategy"] == surge


def test_objects_of_ones_own_are_filled_in_as_objects_and_as_texts(install: Install) -> None:
    written = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-object"}}
    text = 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ include "kvdepot.fullname" . }}-text\n'
    release = install({"extraObjects": [written, text]})
    assert {("ConfigMap", "kv-object"), ("ConfigMap", "kv-kvdepot-text")} <= release.objects.keys()

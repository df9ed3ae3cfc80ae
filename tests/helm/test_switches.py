"""Each value does what its comment says, and nothing when it is not set."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from typer.main import get_command

from service.__main__ import app
from service.units import parse_size
from tests.helm.conftest import CHART, Install, Installed, Manifest

UNITS = ("", "B", "k", "KB", "KiB", "Ki", "m", "MB", "MiB", "mi", "G", "GB", "GiB", "gi", "T", "TB", "TiB", "Ti")
NODE_SOCKET = {"hostAccess": {"hostPID": True, "unixSocket": True}}


def gpu(mode: str, **more: Any) -> Manifest:
    return {"gpu": {"mode": mode, **more}, **NODE_SOCKET}


def volume(release: Installed, name: str) -> Manifest:
    (found,) = [volume for volume in release.pod["volumes"] if volume["name"] == name]
    return dict(found)


def mounts(release: Installed) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in release.container["volumeMounts"]}


def variables(release: Installed) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in release.container["env"]}


def test_a_daemon_set_by_default(default: Installed) -> None:
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


@pytest.mark.parametrize("policy", ["Local", "Cluster"])
def test_traffic_policy(install: Install, policy: str) -> None:
    release = install({"service": {"internalTrafficPolicy": policy}})
    assert service(release)["spec"]["internalTrafficPolicy"] == policy


def service(release: Installed) -> Manifest:
    (found,) = [found for found in release.of("Service") if found["spec"].get("clusterIP") != "None"]
    return found


def test_names(install: Install) -> None:
    assert install(name="kvdepot").workload["metadata"]["name"] == "kvdepot"
    assert install({"nameOverride": "kv"}, name="a").workload["metadata"]["name"] == "a-kv"
    assert install({"fullnameOverride": "cache"}).workload["metadata"]["name"] == "cache"
    long = install({"fullnameOverride": "x" * 63}, name="r" * 53)
    assert {found["metadata"]["name"] for found in long.of("Service")} == {"x" * 63, f"{'x' * 55}-metrics"}


def test_nothing_of_the_node_by_default(default: Installed) -> None:
    assert "hostPID" not in default.pod
    assert "initContainers" not in default.pod
    assert not [volume for volume in default.pod["volumes"] if "hostPath" in volume]
    assert "/dev/shm" not in mounts(default).values()


def test_host_pid(install: Install) -> None:
    assert install({"hostAccess": {"hostPID": True}}).pod["hostPID"] is True


def test_shared_memory(install: Install) -> None:
    release = install({"hostAccess": {"sharedMemory": True}})
    assert volume(release, "shared-memory")["hostPath"]["path"] == "/dev/shm"
    assert mounts(release)["shared-memory"] == "/dev/shm"


def test_the_socket_is_there_for_the_pod_alone_by_default(default: Installed) -> None:
    path = default.settings["listen"][1].removeprefix("unix:")
    assert path.startswith(f"{mounts(default)['socket']}/")
    assert "emptyDir" in volume(default, "socket")
    assert default.settings["unix_socket_mode"] == "600"


def test_the_socket_on_the_node(install: Install) -> None:
    access = {"unixSocket": True, "unixSocketFolder": "/run/x"}
    release = install({"hostAccess": access, "unixSocketMode": "660", "unixSocketOwner": ":2000"})
    assert volume(release, "socket")["hostPath"] == {"path": "/run/x", "type": "DirectoryOrCreate"}
    assert release.settings["unix_socket_mode"] == "660"
    assert release.settings["unix_socket_owner"] == ":2000"
    (first,) = release.pod["initContainers"]
    assert first["command"] == ["chown", "10001:10001", mounts(release)["socket"]]
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert first["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_sockets_folder_may_be_made_by_somebody_else(install: Install) -> None:
    release = install({"hostAccess": {"unixSocket": True, "prepareUnixSocketFolder": False}})
    assert "initContainers" not in release.pod


def test_without_gpus(default: Installed) -> None:
    assert "runtimeClassName" not in default.pod
    assert "nodeSelector" not in default.pod
    assert "tolerations" not in default.pod
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(default)
    assert default.container["image"] == "kvdepot:0.1.0"
    assert not default.of("ResourceClaimTemplate")


def test_gpus_by_runtime_class(install: Install) -> None:
    release = install(gpu("runtimeClass", visibleDevices="GPU-1,GPU-2", runtimeClassName="nvidia-cdi"))
    assert release.pod["runtimeClassName"] == "nvidia-cdi"
    assert variables(release)["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert variables(release)["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert set(release.container["resources"]["limits"]) == {"cpu", "memory"}
    assert release.container["image"] == "kvdepot:0.1.0-cuda"
    assert release.pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert [toleration["key"] for toleration in release.pod["tolerations"]] == ["nvidia.com/gpu"]


def test_gpus_by_device_plugin(install: Install) -> None:
    release = install(gpu("devicePlugin", count=4, runtimeClassName=""))
    for side in ("requests", "limits"):
        assert release.container["resources"][side]["nvidia.com/gpu"] == 4
    assert "runtimeClassName" not in release.pod
    assert "NVIDIA_VISIBLE_DEVICES" not in variables(release)


def test_gpus_by_a_claim_for_each_pod(install: Install) -> None:
    release = install(gpu("dra"))
    (claim,) = release.pod["resourceClaims"]
    template = release["ResourceClaimTemplate"]
    assert claim["resourceClaimTemplateName"] == template["metadata"]["name"]
    (request,) = template["spec"]["spec"]["devices"]["requests"]
    wanted = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "All", "adminAccess": True}
    assert request["exactly"] == wanted
    assert release.container["resources"]["claims"] == [{"name": claim["name"]}]
    own = install(gpu("dra", adminAccess=False, deviceClassName="mig.nvidia.com"))
    (request,) = own["ResourceClaimTemplate"]["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "mig.nvidia.com", "allocationMode": "All"}


def test_another_claim_is_another_template_because_none_can_be_changed(install: Install) -> None:
    names = [
        install(gpu("dra", **more))["ResourceClaimTemplate"]["metadata"]["name"]
        for more in ({}, {}, {"adminAccess": False}, {"deviceClassName": "mig.nvidia.com"})
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_gpus_by_a_claim_that_engines_use_too(install: Install) -> None:
    release = install(gpu("dra", claimName="node-gpus"))
    assert [claim["resourceClaimName"] for claim in release.pod["resourceClaims"]] == ["node-gpus"]
    assert not release.of("ResourceClaimTemplate")


def test_the_claims_version_is_one_that_the_cluster_serves(install: Install) -> None:
    groups = ("v1", "apps/v1", "networking.k8s.io/v1", "resource.k8s.io/v1beta2")
    assert install(gpu("dra"), api_versions=groups)["ResourceClaimTemplate"]["apiVersion"] == "resource.k8s.io/v1beta2"
    assert install(gpu("dra"))["ResourceClaimTemplate"]["apiVersion"] == "resource.k8s.io/v1"


def test_places_are_added_to_those_of_gpus(install: Install) -> None:
    given = {"nodeSelector": {"pool": "a", "nvidia.com/gpu.present": "yes"}, "tolerations": [{"operator": "Exists"}]}
    release = install({**gpu("runtimeClass"), **given})
    assert release.pod["nodeSelector"] == {"pool": "a", "nvidia.com/gpu.present": "yes"}
    assert len(release.pod["tolerations"]) == 2


def test_requests_are_limits_with_l1_inside(default: Installed) -> None:
    resources = default.container["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "4", "memory": f"{20 * 1024}Mi"}


@pytest.mark.parametrize(
    ("l1_size", "beside", "memory"),
    [
        ("1.5GiB", "512MiB", "2048Mi"),
        ("100MB", "0", "100000000"),
        (1 << 34, 1 << 30, "17408Mi"),
        ("2tib", "1", str((2 << 40) + 1)),
        ("3 gb", "7K", "3000007000"),
    ],
)
def test_the_pods_memory_is_computed(install: Install, l1_size: str | int, beside: str | int, memory: str) -> None:
    release = install({"settings": {"l1_size": str(l1_size).replace("tib", "TiB")}, "memoryBesideL1": beside})
    assert release.container["resources"]["limits"]["memory"] == memory


@pytest.mark.parametrize(
    "unit", ["", "B", "k", "KB", "KiB", "Ki", "m", "MB", "MiB", "mi", "G", "GB", "GiB", "gi", "T", "TB", "TiB", "Ti"]
)
def test_sizes_mean_what_they_mean_to_the_server(install: Install, unit: str) -> None:
    release = install({"settings": {"l1_size": f"1536.25{unit}"}, "memoryBesideL1": "0"})
    memory = release.container["resources"]["limits"]["memory"]
    num_bytes = int(memory.removesuffix("Mi")) << 20 if memory.endswith("Mi") else int(memory)
    assert num_bytes == parse_size(f"1536.25{unit}")


def test_resources_can_be_given(install: Install) -> None:
    resources = {"requests": {"cpu": "1"}, "limits": {"memory": "32Gi"}}
    assert install({"resources": resources}).container["resources"] == resources
    counted = install({"resources": resources, **gpu("devicePlugin")}).container["resources"]
    assert counted["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}


def test_reserved_huge_pages_are_a_resource_of_their_own(install: Install) -> None:
    release = install({"settings": {"l1_size": "1025MiB", "l1_huge_pages": "reserved"}, "memoryBesideL1": "3GiB"})
    limits = {"cpu": "4", "memory": "3072Mi", "hugepages-2Mi": "1026Mi"}
    assert release.container["resources"] == {"requests": limits, "limits": limits}


@pytest.mark.parametrize(
    ("drain_timeout", "seconds"), [("20s", 30), ("90", 100), ("2m", 130), ("1.5 h", 5410), ("250ms", 11), (7, 17)]
)
def test_the_grace_period_covers_the_drain(install: Install, drain_timeout: str | int, seconds: int) -> None:
    release = install({"settings": {"drain_timeout": drain_timeout}})
    assert release.pod["terminationGracePeriodSeconds"] == seconds


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
        assert command[:3] == ["python", "-m", "service.commands.health"]
        assert command[3:] == ["--address", release.settings["listen"][1], "--service", asked]


def test_tls(install: Install) -> None:
    release = install({"tls": {"secretName": "cert", "clientCASecretName": "clients"}})
    told = {name: release.settings[name] for name in ("tls_cert", "tls_key", "tls_client_ca")}
    assert told == {
        "tls_cert": f"{mounts(release)['tls']}/tls.crt",
        "tls_key": f"{mounts(release)['tls']}/tls.key",
        "tls_client_ca": f"{mounts(release)['client-ca']}/ca.crt",
    }
    assert volume(release, "tls")["secret"]["secretName"] == "cert"
    client_ca = volume(release, "client-ca")["secret"]
    assert client_ca["secretName"] == "clients"
    assert client_ca["items"] == [{"key": "ca.crt", "path": "ca.crt"}]  # of a Secret that may hold a key, too


def test_tenants(install: Install) -> None:
    release = install({"tenants": {"secretName": "who", "key": "who.yaml"}, "tls": {"secretName": "cert"}})
    assert release.settings["tenants"] == f"{mounts(release)['tenants']}/who.yaml"
    assert volume(release, "tenants")["secret"]["secretName"] == "who"


def test_secrets_are_read_only_and_for_the_pods_group(install: Install) -> None:
    release = install({"tls": {"secretName": "a", "clientCASecretName": "b"}, "tenants": {"secretName": "c"}})
    names = [found["name"] for found in release.pod["volumes"] if "secret" in found]
    assert len(names) == 3
    for name in names:
        assert volume(release, name)["secret"]["defaultMode"] == 0o440
        (mount,) = [mount for mount in release.container["volumeMounts"] if mount["name"] == name]
        assert mount["readOnly"] is True
        assert "subPath" not in mount


def test_no_tls_and_no_tenants_by_default(default: Installed) -> None:
    assert not {"tls_cert", "tls_key", "tls_client_ca", "tenants"} & default.settings.keys()


def test_the_servers_addresses(install: Install) -> None:
    assert install().settings["listen"][0] == "0.0.0.0:50051"
    assert install().settings["prometheus_host"] == "0.0.0.0"
    six = install({"service": {"bindAddress": "::", "port": 6000}, "metrics": {"port": 6001}})
    assert six.settings["listen"][0] == "[::]:6000"
    assert (six.settings["prometheus_host"], six.settings["prometheus_port"]) == ("::", 6001)
    assert {port["name"]: port["containerPort"] for port in six.container["ports"]} == {"grpc": 6000, "metrics": 6001}


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
    labelled = install({"metrics": {value: "always", "labels": {"release": "p"}, "interval": "5s"}})
    assert labelled[kind]["metadata"]["labels"]["release"] == "p"


def test_prometheus_asks_as_often_as_it_is_told_and_calls_depots_what_the_alerts_do(install: Install) -> None:
    (endpoint,) = install({"metrics": {"interval": "7s"}})["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["interval"] == "7s"
    relabelled = {rule["targetLabel"]: rule for rule in endpoint["relabelings"]}
    assert relabelled["job"]["replacement"] == "kvdepot"
    assert relabelled["node"]["sourceLabels"] == ["__meta_kubernetes_pod_node_name"]


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


def test_the_network_policy_lets_in_the_namespace_and_prometheus(default: Installed) -> None:
    policy = default["NetworkPolicy"]["spec"]
    calls, metrics = policy["ingress"]
    assert calls["ports"] == [{"port": "grpc", "protocol": "TCP"}]
    assert {"podSelector": {}} in calls["from"]
    assert metrics == {"ports": [{"port": "metrics", "protocol": "TCP"}], "from": [{"namespaceSelector": {}}]}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []


def test_the_network_policy_lets_in_whom_it_is_told(install: Install) -> None:
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


def test_the_account(install: Install, default: Installed) -> None:
    assert default["ServiceAccount"]["automountServiceAccountToken"] is False
    assert default.pod["automountServiceAccountToken"] is False
    named = install({"serviceAccount": {"name": "depot", "annotations": {"a": "b"}}})
    assert named.pod["serviceAccountName"] == named["ServiceAccount"]["metadata"]["name"] == "depot"
    assert named["ServiceAccount"]["metadata"]["annotations"] == {"a": "b"}
    theirs = install({"serviceAccount": {"create": False, "name": "theirs"}})
    assert not theirs.of("ServiceAccount")
    assert theirs.pod["serviceAccountName"] == "theirs"
    assert install({"serviceAccount": {"create": False}}).pod["serviceAccountName"] == "default"


def test_the_image(install: Install) -> None:
    assert install({"image": {"tag": "dev"}}).container["image"] == "kvdepot:dev"
    digest = f"sha256:{'0' * 64}"
    pinned = install({"image": {"repository": "r/k", "tag": "x", "digest": digest, "pullPolicy": "Always"}})
    assert pinned.container["image"] == f"r/k@{digest}"
    assert pinned.container["imagePullPolicy"] == "Always"
    secrets = install({"image": {"pullSecrets": [{"name": "s"}]}})
    for pod in (secrets.pod, secrets.tests[0]["spec"]):
        assert pod["imagePullSecrets"] == [{"name": "s"}]


def test_variables_of_services_do_not_pass_for_settings(default: Installed) -> None:
    """A Service named kvdepot would set KVDEPOT_PORT and more in each pod."""
    assert default.pod["enableServiceLinks"] is False
    assert not [name for name in variables(default) if name.startswith("KVDEPOT_")]


def test_telemetry_tells_where_it_is_from(default: Installed) -> None:
    names = [variable["name"] for variable in default.container["env"]]
    attributes = variables(default)["OTEL_RESOURCE_ATTRIBUTES"]
    for attribute, variable in (("k8s.node.name", "NODE_NAME"), ("k8s.pod.name", "POD_NAME")):
        assert f"{attribute}=$({variable})" in attributes
        assert names.index(variable) < names.index("OTEL_RESOURCE_ATTRIBUTES")  # else it is not replaced


@pytest.mark.parametrize(
    ("value", "given", "where"),
    [
        ("priorityClassName", "high", "priorityClassName"),
        ("affinity", {"nodeAffinity": {}}, "affinity"),
        ("nodeSelector", {"a": "b"}, "nodeSelector"),
        ("tolerations", [{"operator": "Exists"}], "tolerations"),
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
            "service": {"annotations": {"s": "1"}},
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


def test_the_test_asks_where_engines_do(install: Install) -> None:
    (test,) = install({**gpu("runtimeClass"), "nodeSelector": {"a": "b"}, "service": {"port": 6000}}).tests
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = test["spec"]["containers"]
    assert container["args"] == ["selftest", "--address", "kv-kvdepot.inference.svc:6000", "--wait-seconds", "60"]
    assert test["spec"]["nodeSelector"]["a"] == "b"  # traffic is local: it has to be on a node that has a depot
    assert test["spec"]["tolerations"]
    assert not install({"test": {"enabled": False}}).tests


def test_the_test_shows_who_it_is(install: Install) -> None:
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
    plain = {"tenants": {"secretName": "who"}, "settings": {"tokens_over_plain_tcp": True}}
    (test,) = install({**plain, "test": {"tokenSecretName": "token"}}).tests
    assert test["spec"]["containers"][0]["args"][-1] == "--plain-tcp"


@pytest.mark.parametrize("case", ["plain", "everything shown"])
def test_the_commands_of_the_pods_are_those_that_there_are(install: Install, case: str) -> None:
    shown = {"tls": {"secretName": "a"}, "test": {"tokenSecretName": "b", "clientCertSecretName": "c"}}
    release = install(shown if case == "everything shown" else {})
    commands = get_command(app).commands
    (test,) = release.tests
    words = [container["args"] for container in (release.container, test["spec"]["containers"][0])]
    if case == "everything shown":
        words.append(["health", *release.container["livenessProbe"]["exec"]["command"][3:]])
    for name, *arguments in words:
        commands[name].make_context(name, arguments, resilient_parsing=False)

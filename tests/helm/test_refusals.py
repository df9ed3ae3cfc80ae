"""Values that can't work are refused before anything is made. The message names the value and the remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.conftest import BASE, CHART, Install
from tests.helm.fake_cluster import KINDS, fake_cluster
from tests.helm.helm_engine import Helm, HelmFailed
from tools.generate.chart_schema import SET_BY_THE_CHART

GPU = {"gpu": {"mode": "runtimeClass"}}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a kind that is none": ({"kind": "StatefulSet"}, "at '/kind': value must be one of 'DaemonSet', 'Deployment'"),
    "a value that is none": ({"replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
    "a value within that is none": ({"gpu": {"modes": "dra"}}, "at '/gpu': additional properties 'modes' not allowed"),
    "a setting that is none": ({"settings": {"l1_sise": "1GiB"}}, "additional properties 'l1_sise' not allowed"),
    "a setting out of bounds": (
        {"settings": {"l0_sample_rate": 2}},
        "at '/settings/l0_sample_rate': maximum: got 2, want 1",
    ),
    "a setting of another type": (
        {"settings": {"chunk_size": "big"}},
        "at '/settings/chunk_size': got string, want integer",
    ),
    "no such level": ({"settings": {"log_level": "loud"}}, "at '/settings/log_level': value must be one of 'debug'"),
    "no size": ({"settings": {"l1_size": "plenty"}}, "at '/settings/l1_size': 'plenty' does not match pattern"),
    "no duration": ({"settings": {"lease_ttl": "1y"}}, "at '/settings/lease_ttl': '1y' does not match pattern"),
    "no time to drain": ({"settings": {"drain_timeout": None}}, "at '/settings': missing property 'drain_timeout'"),
    "no size beside L1": ({"memoryBesideL1": "some"}, "at '/memoryBesideL1': 'some' does not match pattern"),
    "a GPU mode that is none": (
        {"gpu": {"mode": "cuda"}},
        "at '/gpu/mode': value must be one of 'none', 'runtimeClass'",
    ),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "at '/podSecurityContext/runAsUser': minimum: got 0, want 1"),
    "root by name": (
        {"podSecurityContext": {"runAsNonRoot": False}},
        "at '/podSecurityContext/runAsNonRoot': value must be true",
    ),
    "a privileged container": (
        {"securityContext": {"privileged": True}},
        "at '/securityContext/privileged': value must be false",
    ),
    "a port below 1024": ({"service": {"port": 80}}, "at '/service/port': minimum: got 80, want 1,024"),
    "a mode that is none": ({"unixSocketMode": "rw-"}, "at '/unixSocketMode': 'rw-' does not match pattern"),
    "a mode that YAML took for a number": ({"unixSocketMode": 600}, "at '/unixSocketMode': got number, want string"),
    "a folder that is none": (
        {"hostAccess": {"unixSocketFolder": "run/x"}},
        "at '/hostAccess/unixSocketFolder': 'run/x'",
    ),
    "a digest that is none": ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
    "no operator's word": (
        {"metrics": {"serviceMonitor": True}},
        "at '/metrics/serviceMonitor': got boolean, want string",
    ),
    "KV events that no router may read": (
        {"kvEvents": {"enabled": True}},
        "networkPolicy.routers: no router could read KV events",
    ),
    "KV events without events": (
        {
            "kvEvents": {"enabled": True},
            "networkPolicy": {"enabled": False},
            "settings": {"disable_observability": True},
        },
        "kvEvents.enabled: settings.disable_observability leaves no events",
    ),
    "two things on a port of KV events": (
        {"kvEvents": {"enabled": True, "port": 9464}, "networkPolicy": {"enabled": False}},
        "kvEvents.port: service.port, metrics.port, kvEvents.port and kvEvents.replayPort have to differ",
    ),
    "no profile": ({"profile": ""}, "profile: it is empty, so nothing says how much memory of which nodes"),
    "a profile that is none": ({"profile": "tiny"}, "at '/profile': value must be one of '', 'gpu', 'cpu', 'try'"),
    "a grace period that cuts off the drain": (
        {"terminationGracePeriodSeconds": 30, "settings": {"drain_timeout": "1m"}},
        "terminationGracePeriodSeconds: 30 is too short; the depot needs settings.drain_timeout, 1m, and 10 seconds",
    ),
    "no time to end": ({"terminationGracePeriodSeconds": 0}, "terminationGracePeriodSeconds: 0 is too short"),
    "a second depot on the same socket": (
        {"hostAccess": {"unixSocket": True}, "updateStrategy": {"rollingUpdate": {"maxSurge": "25%"}}},
        "updateStrategy.rollingUpdate.maxSurge: a second depot next to the old one would take the socket",
    ),
    "a second depot on the same file": (
        {"l1": {"file": {"enabled": True}}, "updateStrategy": {"rollingUpdate": {"maxSurge": 1}}},
        "updateStrategy.rollingUpdate.maxSurge: a second depot next to the old one can't use the file of L1; use 0",
    ),
    "a file that moves with no pod": (
        {"kind": "Deployment", "l1": {"file": {"enabled": True}}},
        "l1.file.enabled: a pod of a Deployment may start before the old one has ended",
    ),
    "huge pages that the pod does not request": (
        {"l1": {"file": {"enabled": True, "folder": "/dev/hugepages/kvdepot"}}},
        "l1.file.folder: the pod may use huge pages only if it requests them; set settings.l1_huge_pages: reserved",
    ),
    "a file in a folder that is none": ({"l1": {"file": {"folder": "shm"}}}, "at '/l1/file/folder': 'shm' does not"),
    "a file by a flag": ({"extraArgs": ["--l1-file=/dev/shm/x"]}, "--l1-file=/dev/shm/x: the chart sets this itself"),
    "a strategy of the other kind": ({"updateStrategy": {"type": "Recreate"}}, "updateStrategy.type: a DaemonSet has"),
    "two monitors": ({"metrics": {"podMonitor": "auto"}}, "set metrics.serviceMonitor: never"),
    "an endpoint with another port": (
        {"metrics": {"endpoint": {"port": "grpc"}}},
        "metrics.endpoint: the chart sets the port itself; use metrics.port",
    ),
    "a flag from which other objects follow": (
        {"extraArgs": ["--l1-size=64GiB"]},
        "extraArgs: --l1-size: other objects follow from it; set settings.l1_size",
    ),
    "a variable of the chart": (
        {"extraEnv": [{"name": "KVDEPOT_LISTEN", "value": ":1"}]},
        "extraEnv: the chart sets KVDEPOT_LISTEN itself",
    ),
    "an alert that is none": (
        {"alerts": {"rules": {"KvdepotDwn": {"enabled": False}}}},
        "at '/alerts/rules': additional properties 'KvdepotDwn' not allowed",
    ),
    "a threshold of an alert without one": (
        {"alerts": {"rules": {"KvdepotDown": {"threshold": 1}}}},
        "at '/alerts/rules/KvdepotDown': additional properties 'threshold' not allowed",
    ),
    "a duration that is none": (
        {"alerts": {"rules": {"KvdepotDown": {"for": "soon"}}}},
        "at '/alerts/rules/KvdepotDown/for': 'soon' does not match pattern",
    ),
    "GPUs without their processes": (
        {**GPU, "hostAccess": {"unixSocket": True}},
        "gpu.mode: CUDA opens an engine's memory only within one PID namespace; set hostAccess.hostPID: true",
    ),
    "GPUs without a socket": ({**GPU, "hostAccess": {"hostPID": True}}, "set hostAccess.unixSocket: true"),
    "replicas that share a socket": (
        {"kind": "Deployment", "replicas": 2, "hostAccess": {"unixSocket": True}},
        "hostAccess.unixSocket: replicas on one node would take the socket from each other",
    ),
    "clients' certificates without TLS": ({"tls": {"clientCASecretName": "a"}}, "set tls.secretName too"),
    "tenants that can't send credentials": (
        {"tenants": {"secretName": "a"}},
        "tenants.secretName: no client could send",
    ),
    "spans without a destination": (
        {"settings": {"enable_tracing": True}},
        "settings.enable_tracing: spans have no destination",
    ),
    "one port for two": ({"metrics": {"port": 50051}}, "metrics.port: it equals service.port"),
    "less memory than L1": (
        {"resources": {"limits": {"memory": "1Gi"}}},
        "resources.limits.memory: 1Gi is too small for settings.l1_size, 1GiB",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(install: Install, what: str) -> None:
    values, message = REFUSED[what]
    with pytest.raises(HelmFailed) as failed:
        install(values)
    assert message in str(failed.value)


@pytest.mark.parametrize("name", SET_BY_THE_CHART)
def test_settings_of_the_chart_are_refused(install: Install, name: str) -> None:
    with pytest.raises(HelmFailed, match=f"additional properties '{name}' not allowed"):
        install({"settings": {name: "x"}})


def test_all_faults_are_reported_at_once(install: Install) -> None:
    with pytest.raises(HelmFailed) as failed:
        install({**GPU, "service": {"port": 9464}})
    assert len(str(failed.value).splitlines()) == 4  # Helm's own line, and three


def test_what_is_refused_for_want_of_something_is_taken_with_it(install: Install) -> None:
    for known in ({"settings": {"cuda_over_tcp": True}}, {"tls": {"secretName": "a", "clientCASecretName": "b"}}):
        assert install({**GPU, "hostAccess": {"hostPID": True}, **known})
    assert install({"tenants": {"secretName": "a"}, "hostAccess": {"unixSocket": True}})
    assert install({"kind": "Deployment", "replicas": 1, "hostAccess": {"unixSocket": True}})
    reserved = {"settings": {"l1_huge_pages": "reserved"}, "resources": {"limits": {"memory": "4Gi"}}}
    assert install(reserved)


def test_an_old_cluster_is_refused(install: Install) -> None:
    with pytest.raises(HelmFailed, match=r"incompatible with Kubernetes v1\.26\.0"):
        install(version="1.26")


def test_claims_on_a_cluster_without_them_are_refused(install: Install) -> None:
    groups = tuple(group for group in KINDS if not group.startswith("resource"))
    dra = {"gpu": {"mode": "dra"}, "hostAccess": {"hostPID": True, "unixSocket": True}}
    with pytest.raises(HelmFailed, match=r"dra needs resource\.k8s\.io"):
        install(dra, version="1.30", api_versions=groups)


def test_what_is_refused_leaves_nothing(helm: Helm) -> None:
    with fake_cluster() as cluster:
        with pytest.raises(HelmFailed):
            helm.install(str(CHART), "kv", cluster.kubeconfig, [BASE | GPU])
        assert not cluster.objects

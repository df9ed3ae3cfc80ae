"""With all kinds of values, the manifests are valid for Kubernetes and fit each other."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate.utils
import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from service.load_settings import load
from service.settings import Settings
from tests.helm.conftest import BASE, CHART, CI_FILES, Install, Installed, Manifest, installed
from tests.helm.fake_cluster import KINDS, WITHOUT_OPERATOR, fake_cluster
from tests.helm.helm_engine import Helm

# An old version, one with resource claims as beta, and the newest one with schemas.
VERSIONS = {
    "1.30": tuple(group for group in KINDS if not group.startswith("resource")),
    "1.33": tuple(group for group in KINDS if group != "resource.k8s.io/v1"),
    "1.37": tuple(KINDS),
}
OF_THE_OPERATOR = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
PROFILES = yaml.safe_load((CHART / "profiles.yaml").read_text())
CASES = {f"profile {name}": {"profile": name} for name in PROFILES} | {
    path.stem.removesuffix("-values"): yaml.safe_load(path.read_text()) for path in CI_FILES
}


@pytest.fixture(scope="module", autouse=True)
def read_schemas_once() -> Iterator[None]:
    """They are large, and read for each manifest otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            kubernetes_validate.utils, "schema_contents", functools.cache(kubernetes_validate.utils.schema_contents)
        )
        yield


def runs_on(case: str, version: str) -> bool:
    return case != "gpu-dra" or version != "1.30"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def release(install: Install, case: str) -> Installed:
    return install(CASES[case])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_and_has_no_unknown_field(install: Install, case: str, version: str) -> None:
    if not runs_on(case, version):
        pytest.skip("this version has no resource claims; that it is refused is tested elsewhere")
    found = install(CASES[case], version=version, api_versions=VERSIONS[version])
    for manifest in found.all:
        if manifest["kind"] not in OF_THE_OPERATOR:
            validate(manifest, version, strict=True)


def test_the_schemas_find_faults(default: Installed) -> None:
    broken = yaml.safe_load(yaml.safe_dump(default.workload))
    broken["spec"]["template"]["spec"]["hostpid"] = True
    with pytest.raises(ValidationError, match="hostpid"):
        validate(broken, "1.37", strict=True)


def test_the_config_is_one_that_the_server_takes(release: Installed, tmp_path: Path, clean: None) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(release.config)
    settings = load({}, config)
    assert settings.described().keys() == Settings.model_fields.keys()
    (grpc,) = [port["containerPort"] for port in release.container["ports"] if port["name"] == "grpc"]
    assert settings.listen[0].endswith(f":{grpc}")
    if settings.disable_metrics or settings.otlp_endpoint:
        assert len(release.container["ports"]) == 1
    else:
        assert {"name": "metrics", "containerPort": settings.prometheus_port} in release.container["ports"]


def test_each_given_setting_arrives(release: Installed, case: str) -> None:
    given = CASES[case].get("settings", {})
    assert {name: release.settings[name] for name in given} == given


def test_references_within_the_pods_resolve(release: Installed) -> None:
    for pod in (release.pod, *(test["spec"] for test in release.tests)):
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(set(volumes)) == len(volumes)
        used, claims = set(), set()
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            mounts = container.get("volumeMounts", ())
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
            used |= {mount["name"] for mount in mounts}
            claims |= {claim["name"] for claim in container.get("resources", {}).get("claims", ())}
        assert used == set(volumes)
        if pod is release.pod:
            assert claims == {claim["name"] for claim in pod.get("resourceClaims", ())}
        if pod["serviceAccountName"] != "default":
            assert ("ServiceAccount", pod["serviceAccountName"]) in release.objects
        for volume in pod["volumes"]:
            if volume["name"] == "settings":
                assert ("ConfigMap", volume["configMap"]["name"]) in release.objects
        for claim in pod.get("resourceClaims", ()):
            assert ("ResourceClaimTemplate", claim["resourceClaimTemplateName"]) in release.objects


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def test_selectors_choose_the_depots_and_nothing_else(release: Installed) -> None:
    labels = release.workload["spec"]["template"]["metadata"]["labels"]
    tests = [test["metadata"]["labels"] for test in release.tests]
    selectors = [service["spec"]["selector"] for service in release.of("Service")]
    selectors.append(release.workload["spec"]["selector"]["matchLabels"])
    for kind, key in (("NetworkPolicy", "podSelector"), ("PodDisruptionBudget", "selector")):
        selectors += [found["spec"][key]["matchLabels"] for found in release.of(kind)]
    assert len(selectors) >= 3
    for selector in selectors:
        assert selects(selector, labels)
        assert not any(selects(selector, other) for other in tests)
    ports = {port["name"] for port in release.container["ports"]}
    for service in release.of("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in release.of("PodMonitor"):
        assert selects(monitor["spec"]["selector"]["matchLabels"], labels)
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
    for monitor in release.of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [found for found in release.of("Service") if selects(wanted, found["metadata"]["labels"])]
        assert [port["name"] for port in service["spec"]["ports"]] == [monitor["spec"]["endpoints"][0]["port"]]


OWN_OBJECTS = {"depot-audit", "kv-depot-more"}  # of extraObjects


def test_labels_are_those_that_tools_know(release: Installed) -> None:
    for manifest in release.all:
        labels = manifest["metadata"].get("labels", {})
        if "app.kubernetes.io/name" not in labels:
            assert manifest["metadata"]["name"] in OWN_OBJECTS
            continue
        assert {f"app.kubernetes.io/{name}" for name in ("name", "instance", "version", "managed-by")} <= labels.keys()
        assert all(len(value) <= 63 for value in labels.values())
        assert len(manifest["metadata"]["name"]) <= 63


def test_upgrades_lead_to_what_an_install_makes(helm: Helm, install: Install) -> None:
    """Upgrade from each case to the next and back: objects that the new values do not want are gone."""
    chain = [*CASES, "profile try"]
    with fake_cluster() as cluster:
        *_, last = helm.install(str(CHART), "kv", cluster.kubeconfig, [CASES[case] for case in chain])
        after = installed(cluster, last)
    assert plain(after.objects) == plain(install(CASES["profile try"]).objects)


def plain(objects: dict[tuple[str, str], Manifest]) -> dict[tuple[str, str], Any]:
    return {
        name: {key: manifest.get(key) for key in ("metadata", "spec", "data")} for name, manifest in objects.items()
    }


def test_an_upgrade_of_the_settings_replaces_the_pods_and_no_change_does_not(helm: Helm) -> None:
    def checksum(*changes: Manifest) -> str:
        values = [BASE | change for change in changes]
        with fake_cluster() as cluster:
            *_, last = helm.install(str(CHART), "kv", cluster.kubeconfig, values)
            template = installed(cluster, last).workload["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({}, {})
    assert checksum({}) != checksum({}, {"settings": {"chunk_size": 512}})


def test_without_the_operator_there_is_nothing_of_it(install: Install) -> None:
    assert not {kind for kind, _ in install(api_versions=WITHOUT_OPERATOR).objects} & OF_THE_OPERATOR
    assert {kind for kind, _ in install().objects} >= {"ServiceMonitor", "PrometheusRule"}


def test_the_rules_are_what_prometheus_takes(release: Installed, promtool: str, tmp_path: Path) -> None:
    for rule in release.of("PrometheusRule"):
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(rule["spec"]))
        checked = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr

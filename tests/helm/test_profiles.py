"""Profiles: what each one gives, that given values override it, and that nothing is installed before one is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.units import parse_size
from tests.helm.conftest import CHART, REPOSITORY, Install, Installed, installed
from tests.helm.fake_cluster import fake_cluster
from tests.helm.helm_engine import Helm

PROFILES = yaml.safe_load((CHART / "profiles.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by their paths."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def memory_bytes(release: Installed) -> int:
    return parse_size(release.container["resources"]["requests"]["memory"])


def test_each_profile_gives_exactly_the_values_that_say_so() -> None:
    by_profile = {name for name, value in flat(VALUES).items() if value is None} - {"terminationGracePeriodSeconds"}
    assert {name: set(flat(profile)) for name, profile in PROFILES.items()} == dict.fromkeys(PROFILES, by_profile)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_arrives(install: Install, name: str) -> None:
    release, profile = install({"profile": name}), PROFILES[name]
    assert release.workload["kind"] == profile["kind"]
    assert release.settings["l1_size"] == profile["settings"]["l1_size"]
    sizes = (profile["settings"]["l1_size"], profile["memoryBesideL1"])
    assert memory_bytes(release) == sum(map(parse_size, sizes))
    assert release.container["resources"]["requests"]["cpu"] == profile["cpus"]
    assert release.pod.get("hostPID", False) == profile["hostAccess"]["hostPID"]
    paths = {volume["hostPath"]["path"] for volume in release.pod["volumes"] if "hostPath" in volume}
    access = {"/dev/shm": "sharedMemory", "/run/kvdepot": "unixSocket"}
    assert paths == {path for path, value in access.items() if profile["hostAccess"][value]}
    assert ("runtimeClassName" in release.pod) == (profile["gpu"]["mode"] == "runtimeClass")


def test_a_trial_is_one_small_pod_on_any_node(install: Install) -> None:
    release = install({"profile": "try"})
    assert (release.workload["kind"], release.workload["spec"]["replicas"]) == ("Deployment", 1)
    assert memory_bytes(release) <= 2 << 30
    assert "nodeSelector" not in release.pod


def test_depots_for_gpus_are_on_nodes_with_gpus(install: Install) -> None:
    assert install({"profile": "gpu"}).pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}


def test_given_values_override_the_profile_even_if_they_are_false_or_0(install: Install) -> None:
    off = {"hostPID": False, "sharedMemory": False, "unixSocket": False}
    given = {"kind": "Deployment", "cpus": "2", "memoryBesideL1": 0, "hostAccess": off}
    release = install({"profile": "cpu", **given, "settings": {"l1_size": "3GiB"}})
    assert release.workload["kind"] == "Deployment"
    assert release.container["resources"]["requests"] == {"cpu": "2", "memory": "3Gi"}
    assert not [volume for volume in release.pod["volumes"] if "hostPath" in volume]
    assert "hostPID" not in release.pod


@pytest.mark.parametrize("name", PROFILES)
def test_the_operators_manual_has_the_sizes(name: str) -> None:
    page = (REPOSITORY / "docs/operations.md").read_text()
    (row,) = [line for line in page.splitlines() if line.strip().startswith(f"| `{name}`")]
    _, _, _, memory, cpus, access, *_ = map(str.strip, row.split("|"))
    sizes = [parse_size(text.removesuffix(" of L1").replace(" ", "")) for text in memory.split(" + ")]
    profile = PROFILES[name]
    assert sizes == [parse_size(profile["settings"]["l1_size"]), parse_size(profile["memoryBesideL1"])]
    assert cpus == profile["cpus"]
    words = {"hostPID": "PIDs", "unixSocket": "socket", "sharedMemory": "/dev/shm"}
    assert access == (", ".join(word for value, word in words.items() if profile["hostAccess"][value]) or "none")


@pytest.mark.parametrize("path", sorted((CHART / "templates").rglob("*.*")), ids=lambda path: path.name)
def test_each_rendered_file_applies_the_profile_first(path: Any) -> None:
    """Helm says nothing about the order in which it renders files, and they share the values."""
    if path.suffix != ".tpl":
        assert path.read_text().startswith('{{- include "kvdepot.applyProfile" . ')


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        ({"profile": "try"}, "profile try: 1 depot.", "Each takes cpu 1, memory 2Gi. L1 has 1GiB."),
        (
            {"profile": "gpu", "settings": {"l1_size": "64GiB"}},
            "profile gpu: one depot on each node with nvidia.com/gpu.present=true.",
            "Each takes cpu 4, memory 72Gi. L1 has 64GiB.",
        ),
        (
            {"profile": "try", "replicas": 2, "nodeSelector": {"pool": "a"}, "resources": {"limits": {"cpu": "3"}}},
            "profile try: 2 depots on nodes with pool=a.",
            "Each takes cpu 3. L1 has 1GiB.",
        ),
    ],
)
def test_the_notes_say_what_was_chosen(install: Install, values: dict[str, Any], first: str, second: str) -> None:
    notes = install(values).notes.splitlines()
    assert notes[0].endswith(first)
    assert notes[1] == second
    counts = "  kubectl --namespace inference get daemonset/kv-kvdepot" in notes
    assert counts == (values["profile"] == "gpu")


def test_in_a_parent_chart_the_profile_and_the_shared_registry_count(helm: Helm, tmp_path: Path) -> None:
    parent = tmp_path / "platform"
    shutil.copytree(CHART, parent / "charts" / "kvdepot")
    (parent / "Chart.yaml").write_text("{apiVersion: v2, name: platform, version: 1.0.0}")
    values = {"global": {"imageRegistry": "mirror.local", "other": 1}, "kvdepot": {"profile": "try"}}
    with fake_cluster() as cluster:
        (release,) = helm.install(str(parent), "p", cluster.kubeconfig, [values])
        found = installed(cluster, release)
    assert found.container["image"].startswith("mirror.local/kvdepot:")
    assert found.settings["l1_size"] == "1GiB"

"""The chart, installed by the real Helm engine into a fake cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import real_servers
from tests.helm.fake_cluster import KINDS, FakeCluster, fake_cluster
from tests.helm.helm_engine import Helm

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "kvdepot"
CI_FILES = sorted((CHART / "ci").glob("*-values.yaml"))

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The objects of a release in a cluster, its notes, and the pods of `helm test`."""

    objects: dict[tuple[str, str], Manifest]
    notes: str
    tests: list[Manifest]

    def __getitem__(self, kind: str) -> Manifest:
        """Return the only object of a kind."""
        (found,) = self.of(kind)
        return found

    def of(self, kind: str) -> list[Manifest]:
        """Return the objects of a kind."""
        return [manifest for (its_kind, _), manifest in self.objects.items() if its_kind == kind]

    @property
    def all(self) -> list[Manifest]:
        """All objects, including the pods of the tests."""
        return [*self.objects.values(), *self.tests]

    @property
    def workload(self) -> Manifest:
        """The DaemonSet or the Deployment."""
        (found,) = self.of("DaemonSet") + self.of("Deployment")
        return found

    @property
    def pod(self) -> Manifest:
        """The spec of its pods."""
        spec: Manifest = self.workload["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        """The depot's container."""
        (found,) = [container for container in self.pod["containers"] if container["name"] == "depot"]
        return dict(found)

    @property
    def config(self) -> str:
        """The settings file."""
        (config,) = [found for found in self.of("ConfigMap") if "settings.yaml" in found.get("data", {})]
        return str(config["data"]["settings.yaml"])

    @property
    def settings(self) -> dict[str, Any]:
        """Its content."""
        return dict(yaml.safe_load(self.config))


Install = Callable[..., Installed]

BASE = {"profile": "try", "kind": "DaemonSet"}
"""What tests that choose no profile get: a small depot on each node, without access to the node."""


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    """One engine for all tests."""
    loads = "import helm_sdkpy._ffi as ffi; ffi.get_library()"
    tried = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"the Helm engine can't be loaded: {tried.stderr.strip().splitlines()[-1]}")
    engine = Helm()
    yield engine
    engine.close()


def installed(cluster: FakeCluster, release: dict[str, Any]) -> Installed:
    """Return a cluster's objects with the release's notes and tests."""
    tests = [yaml.safe_load(hook["manifest"]) for hook in release.get("hooks", ())]
    objects = {name: _without_helms_annotations(manifest) for name, manifest in cluster.objects.items()}
    return Installed(objects=objects, notes=release["info"].get("notes", ""), tests=tests)


def _without_helms_annotations(manifest: Manifest) -> Manifest:
    annotations = manifest["metadata"].get("annotations", {}).items()
    kept = {name: value for name, value in annotations if not name.startswith("meta.helm.sh/")}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": kept}}


@pytest.fixture(scope="session")
def install(helm: Helm) -> Install:
    """`install({"kind": "Deployment"}, name="kv", version="1.37", api_versions=…)` in a cluster of its own."""

    def run(
        values: dict[str, Any] | None = None,
        *,
        name: str = "kv",
        version: str = "1.37",
        api_versions: Iterable[str] = tuple(KINDS),
    ) -> Installed:
        given = values or {}
        with fake_cluster(version, api_versions) as cluster:
            chosen = given if "profile" in given else BASE | given
            (release,) = helm.install(str(CHART), name, cluster.kubeconfig, [chosen])
            return installed(cluster, release)

    return run


@pytest.fixture(scope="session")
def default(install: Install) -> Installed:
    """A release with no values given but `BASE`."""
    return install()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove settings from the environment."""
    for name in list(os.environ):
        if name.startswith("KVDEPOT_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's tool."""
    return real_servers.found("promtool")

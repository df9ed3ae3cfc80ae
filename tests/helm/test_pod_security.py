"""The pods fit the rules of the Pod Security level `restricted`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.helm.conftest import CI_FILES, Install, Installed, Manifest

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HOST = {
    "cpu-deployment": set(),
    "secure": set(),
    "gpu-device-plugin": {"hostPID", "hostPath"},
}
OF_A_PROFILE = {"hostPID", "hostPath", "root", "capability CHOWN"}


def violations(pod: Manifest) -> Iterator[str]:
    """See https://kubernetes.io/docs/concepts/security/pod-security-standards."""
    yield from (name for name in ("hostPID", "hostIPC", "hostNetwork") if pod.get(name))
    for volume in pod["volumes"]:
        yield from volume.keys() - {"name"} - VOLUMES
    of_pod = pod["securityContext"]
    assert not of_pod.get("sysctls")
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        if container["name"] not in ("depot", "socket-folder", "l1-folder", "test"):
            continue  # the user's own
        own = {**of_pod, **container["securityContext"]}
        if not own.get("runAsNonRoot") or not own.get("runAsUser"):
            yield "root"
        if own.get("allowPrivilegeEscalation", True):
            yield "privilege escalation"
        if own.get("privileged"):
            yield "privileged"
        if own.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield "seccomp"
        if own["capabilities"]["drop"] != ["ALL"]:
            yield "capabilities"
        yield from (f"capability {name}" for name in own["capabilities"].get("add", ()))
        yield from ("hostPort" for port in container.get("ports", ()) if "hostPort" in port)
        if not own.get("readOnlyRootFilesystem"):
            yield "writable root file system"  # not of the level: ours


def test_without_access_to_the_node_the_strictest_level_lets_the_pods_pass(default: Installed) -> None:
    for pod in (default.pod, *(test["spec"] for test in default.tests)):
        assert not list(violations(pod))


@pytest.mark.parametrize("path", CI_FILES, ids=lambda path: path.stem.removesuffix("-values"))
def test_only_what_is_asked_for_is_opened(install: Install, path: object) -> None:
    (file,) = [found for found in CI_FILES if found == path]
    release = install(yaml.safe_load(file.read_text()))
    assert set(violations(release.pod)) == HOST.get(file.stem.removesuffix("-values"), OF_A_PROFILE)
    for test in release.tests:
        assert not list(violations(test["spec"]))


def test_the_profile_try_passes_the_strictest_level_and_the_others_open_the_node(install: Install) -> None:
    opened = {name: set(violations(install({"profile": name}).pod)) for name in ("gpu", "cpu", "try")}
    assert opened == {"gpu": OF_A_PROFILE, "cpu": OF_A_PROFILE, "try": set()}


def test_the_depot_itself_stays_unprivileged_with_an_init_container_that_is_root(install: Install) -> None:
    pod = install({"hostAccess": {"unixSocket": True}}).pod
    assert "root" not in set(violations({**pod, "initContainers": []}))
    assert "allowPrivilegeEscalation" in pod["initContainers"][0]["securityContext"]


def test_nothing_has_a_token_of_the_api(install: Install) -> None:
    for values in ({}, {"serviceAccount": {"create": False}}):
        release = install(values)
        for pod in (release.pod, *(test["spec"] for test in release.tests)):
            assert pod["automountServiceAccountToken"] is False


def test_no_rights_are_asked_for(default: Installed) -> None:
    assert not {kind for kind, _ in default.objects if kind.startswith(("Role", "ClusterRole"))}

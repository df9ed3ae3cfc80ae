"""L1 in a file of the node: where it is, who owns it, and how long a start with it may take."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from tests.helm.conftest import Install, Installed
from tests.helm.releases import mounts, volume

FILE = {"l1": {"file": {"enabled": True}}}


def test_no_file_by_default(default: Installed) -> None:
    assert "l1_file" not in default.settings
    assert "l1" not in mounts(default)


def test_the_file_is_in_the_folder_of_the_node(install: Install) -> None:
    release = install({"l1": {"file": {"enabled": True, "folder": "/dev/shm/depot-a"}}})
    assert volume(release, "l1")["hostPath"] == {"path": "/dev/shm/depot-a", "type": "DirectoryOrCreate"}
    assert str(PurePosixPath(release.settings["l1_file"]).parent) == mounts(release)["l1"]


def test_the_folder_is_given_to_the_user(install: Install) -> None:
    release = install({**FILE, "podSecurityContext": {"runAsUser": 1000, "runAsGroup": 1001}})
    (first,) = release.pod["initContainers"]
    assert first["command"] == ["chown", "1000:1001", mounts(release)["l1"]]
    assert first["volumeMounts"] == [{"name": "l1", "mountPath": mounts(release)["l1"]}]
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}


def test_the_folder_may_be_the_users_already(install: Install) -> None:
    release = install({"l1": {"file": {"enabled": True, "prepareFolder": False}}})
    assert "initContainers" not in release.pod


def test_both_folders_are_given_to_the_user(install: Install) -> None:
    release = install({**FILE, "hostAccess": {"unixSocket": True}})
    assert [container["name"] for container in release.pod["initContainers"]] == ["socket-folder", "l1-folder"]


def test_the_old_pod_ends_before_the_new_one_starts(install: Install) -> None:
    strategy = install(FILE)["DaemonSet"]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}


@pytest.mark.parametrize(
    ("l1_size", "is_file", "seconds"), [("64GiB", True, 248), ("64GiB", False, 120), ("1.5GiB", True, 123)]
)
def test_the_first_start_has_time_to_make_the_pages(
    install: Install, l1_size: str, is_file: bool, seconds: int
) -> None:
    release = install({"settings": {"l1_size": l1_size}, "l1": {"file": {"enabled": is_file}}})
    probe = release.container["startupProbe"]
    assert 0 <= probe["periodSeconds"] * probe["failureThreshold"] - seconds <= 1


def test_a_changed_file_replaces_the_pods(install: Install) -> None:
    checksums = {
        install(values)["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for values in ({}, FILE)
    }
    assert len(checksums) == 2


def test_the_notes_say_that_the_file_stays(install: Install) -> None:
    assert "L1 outlives the pods, in /dev/shm/kvdepot of each node" in install(FILE).notes
    assert "outlives" not in install({}).notes

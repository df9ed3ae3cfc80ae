"""Parts of a release that tests of the chart read, and values that several tests give."""

from __future__ import annotations

from typing import Any

from tests.helm.conftest import Installed, Manifest

NODE_SOCKET = {"hostAccess": {"hostPID": True, "unixSocket": True}}


def gpu(mode: str, **more: Any) -> Manifest:
    """Return values for GPUs, with those that each mode needs of the node."""
    return {"gpu": {"mode": mode, **more}, **NODE_SOCKET}


def volume(release: Installed, name: str) -> Manifest:
    """Return the volume of a name of the depots."""
    (found,) = [volume for volume in release.pod["volumes"] if volume["name"] == name]
    return dict(found)


def mounts(release: Installed) -> dict[str, str]:
    """Return the mount paths of volumes by name."""
    return {mount["name"]: mount["mountPath"] for mount in release.container["volumeMounts"]}


def variables(release: Installed) -> dict[str, str]:
    """Return the variables of the depot with their values."""
    return {variable["name"]: variable.get("value", "") for variable in release.container["env"]}


def service(release: Installed) -> Manifest:
    """Return the Service that engines use."""
    (found,) = [found for found in release.of("Service") if found["spec"].get("clusterIP") != "None"]
    return found

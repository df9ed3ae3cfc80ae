"""Tiers behind L1: where their volumes and Secrets are mounted, which ports are open, what memory they take."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from service.load_settings import load
from tests.helm.conftest import CHART, REPOSITORY, Install, Installed
from tests.helm.helm_engine import HelmFailed
from tests.helm.releases import mounts, volume

NODE = {"hostPath": {"path": "/mnt/nvme0", "type": "DirectoryOrCreate"}}
DISK = {"url": "disk:///data/l2?size=200GiB", "volume": NODE}
VALKEY = {"url": "valkey://cache?password_file=/etc/kvdepot/l2/cache/password", "secrets": ["cache"]}
S3 = {"url": "s3://chunks", "secrets": ["aws.keys"]}
MOONCAKE = {"url": "mooncake://master:51000?segment=16GiB"}


def egress(release: Installed) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = release["NetworkPolicy"]["spec"]["egress"]
    return found


def test_no_tier_by_default(default: Installed) -> None:
    assert "l2" not in default.settings
    assert not [name for name in mounts(default) if name.startswith("l2")]
    assert egress(default) == []


def test_the_addresses_are_settings_that_the_server_takes(install: Install, clean: None) -> None:
    settings = install({"l2": [DISK, VALKEY, S3, MOONCAKE], "settings": {"l2_write": "all"}}).settings
    assert settings["l2"] == [each["url"] for each in (DISK, VALKEY, S3, MOONCAKE)]
    assert [each.kind for each in load({"l2": settings["l2"]}).tier_addresses()] == ["disk", "valkey", "s3", "mooncake"]
    assert settings["l2_write"] == "all"


@pytest.mark.parametrize(
    "source",
    [NODE, {"emptyDir": {"sizeLimit": "201Gi"}}, {"ephemeral": {"volumeClaimTemplate": {"spec": {"a": "b"}}}}],
)
def test_a_volume_is_mounted_above_the_folder_of_the_tier(install: Install, source: dict[str, Any]) -> None:
    release = install({"l2": [VALKEY, {**DISK, "volume": source}]})
    assert volume(release, "l2-1") == {"name": "l2-1", **source}
    assert mounts(release)["l2-1"] == "/data"
    assert "l2-0" not in mounts(release)


def test_a_folder_of_the_node_is_given_to_the_user(install: Install) -> None:
    release = install({"l2": [DISK], "podSecurityContext": {"runAsUser": 1000, "runAsGroup": 1001}})
    (first,) = release.pod["initContainers"]
    assert first["command"] == ["chown", "1000:1001", "/data"]
    assert first["volumeMounts"] == [{"name": "l2-0", "mountPath": "/data"}]
    assert "initContainers" not in install({"l2": [{**DISK, "prepareFolder": False}]}).pod
    assert "initContainers" not in install({"l2": [{**DISK, "volume": {"emptyDir": {}}}]}).pod


def test_a_secret_is_mounted_once_under_its_name(install: Install) -> None:
    release = install({"l2": [VALKEY, {**VALKEY, "url": "valkey://other?name=b"}, S3]})
    assert volume(release, "l2-secret-0")["secret"] == {"secretName": "cache", "defaultMode": 0o440}
    by_path = {path: name for name, path in mounts(release).items()}
    assert by_path["/etc/kvdepot/l2/cache"] == "l2-secret-0"
    assert by_path["/etc/kvdepot/l2/aws.keys"] == "l2-secret-1"
    assert "l2-secret-2" not in mounts(release)


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("valkey://cache", 6379),
        ("rediss://[fd00::1]:7000/2?user=a:1", 7000),
        ("mooncake://master?segment=0", 50051),
        ("s3://bucket/p", 443),
        ("s3://bucket?region=x&endpoint=http://minio", 80),
        ("s3://bucket?endpoint=https://minio:9000/path&region=x", 9000),
        ("s3://bucket?endpoint=http%3A%2F%2Fminio%3a9000", 9000),
    ],
)
def test_the_network_policy_lets_out_calls_to_a_server(install: Install, url: str, port: int) -> None:
    names, servers, *_ = egress(install({"l2": [{"url": url}]}))
    assert {rule["port"] for rule in names["ports"]} == {53}
    assert servers["ports"][0] == {"port": port, "protocol": "TCP"}


def test_a_disk_needs_no_egress(install: Install) -> None:
    assert egress(install({"l2": [DISK]})) == []


def test_the_nodes_of_mooncake_reach_each_other_and_nobody_else(install: Install) -> None:
    peers = [{"podSelector": {"matchLabels": {"app": "mooncake"}}}]
    release = install({"l2": [MOONCAKE], "networkPolicy": {"mooncake": peers}})
    between = {"port": 15000, "endPort": 17000, "protocol": "TCP"}
    assert between in egress(release)[1]["ports"]
    [rule] = [rule for rule in release["NetworkPolicy"]["spec"]["ingress"] if between in rule["ports"]]
    own, other = rule["from"]
    labels = release.workload["spec"]["template"]["metadata"]["labels"]
    assert own["podSelector"]["matchLabels"].items() <= labels.items()
    assert [other] == peers
    assert not [
        rule for rule in install({"l2": [VALKEY]})["NetworkPolicy"]["spec"]["ingress"] if between in rule["ports"]
    ]


@pytest.mark.parametrize(("tiers", "memory"), [([DISK], "2368Mi"), ([DISK, VALKEY], "2688Mi"), ([MOONCAKE], "18752Mi")])
def test_the_pods_memory_includes_io_workers_and_segments(install: Install, tiers: list[Any], memory: str) -> None:
    assert install({"l2": tiers}).container["resources"]["limits"]["memory"] == memory


def disk(url: str = "disk:///data/l2?size=200GiB", **volume: Any) -> dict[str, Any]:
    return {"url": url, "volume": volume}


REFUSED = {
    "no address": ([{"volume": NODE}], {}, "missing property 'url'"),
    "another kind": ([{"url": "ftp://host"}], {}, "at '/l2/0/url': 'ftp://host' does not match pattern"),
    "a password": ([{"url": "valkey://me:hunter2@host"}], {}, "does not match pattern"),
    "a relative folder": ([{"url": "disk://data/l2"}], {}, "does not match pattern"),
    "a field that is none": ([{**VALKEY, "secret": "cache"}], {}, "additional properties 'secret' not allowed"),
    "a disk without a volume": (
        [{"url": DISK["url"]}],
        {},
        "l2[0].volume: the container's own file system",
    ),
    "a volume of a server": ([VALKEY, {**S3, "volume": NODE}], {}, "l2[1].volume: only a disk:// tier has a volume"),
    "a volume in place of the root": ([disk("disk:///l2?size=1GiB", **NODE)], {}, "would be mounted at /, which"),
    "a volume over the depot's own": (
        [disk("disk:///etc/kvdepot/l2?size=1GiB", **NODE)],
        {},
        "l2[0].url: the volume would be mounted at /etc/kvdepot, which the container needs for itself",
    ),
    "two volumes at one place": (
        [DISK, disk("disk:///data/b?size=1GiB&name=b", **NODE)],
        {},
        "l2[1].url: the volume of another tier is mounted at /data",
    ),
    "a claim that pods would share": (
        [disk(persistentVolumeClaim={"claimName": "a"})],
        {},
        "l2[0].volume.persistentVolumeClaim: all pods would share it",
    ),
    "a folder that replicas would share": (
        [DISK],
        {"kind": "Deployment", "replicas": 2},
        "l2[0].volume.hostPath: replicas on one node would share it",
    ),
    "a limit below the size": (
        [disk(emptyDir={"sizeLimit": "199Gi"})],
        {},
        "l2[0].volume.emptyDir.sizeLimit: 199Gi is below the size of the tier, 200GiB",
    ),
    "a Secret that is not named": (
        [{"url": VALKEY["url"]}],
        {},
        "l2[0].secrets: the address names a file of the Secret cache",
    ),
    "an address among the arguments": (
        [],
        {"extraArgs": ["--l2=s3://b"]},
        "extraArgs: --l2=s3://b: the chart sets this",
    ),
    "an address in the environment": (
        [],
        {"extraEnv": [{"name": "KVDEPOT_L2", "value": "s3://b"}]},
        "extraEnv: volumes and other objects follow from KVDEPOT_L2; use the value l2",
    ),
}


@pytest.mark.parametrize(("tiers", "values", "words"), REFUSED.values(), ids=REFUSED)
def test_tiers_that_can_not_work_are_refused(
    install: Install, tiers: list[Any], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(HelmFailed) as caught:
        install({"l2": tiers, **values})
    assert words in str(caught.value)


def test_one_pod_may_have_a_claim(install: Install) -> None:
    claim: dict[str, Any] = {"persistentVolumeClaim": {"claimName": "a"}}
    assert volume(install({"kind": "Deployment", "l2": [disk(**claim)]}), "l2-0") == {"name": "l2-0", **claim}


def test_the_policy_of_writing_may_be_an_argument(install: Install) -> None:
    assert install({"extraArgs": ["--l2-write", "none"]}).container["args"][-2:] == ["--l2-write", "none"]


def test_the_example_of_the_page_can_be_installed(install: Install) -> None:
    page = (REPOSITORY / "docs" / "tiers.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(install(yaml.safe_load(example)).settings["l2"]) == 2


def test_the_example_has_a_tier_of_each_kind() -> None:
    text = (CHART / "ci" / "tiers-values.yaml").read_text()
    assert all(f"url: {kind}://" in text for kind in ("disk", "valkeys", "s3", "mooncake"))

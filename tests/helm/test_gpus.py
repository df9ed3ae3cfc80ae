"""How the pods see GPUs, in each mode."""

from __future__ import annotations

from tests.helm.conftest import Install, Installed
from tests.helm.releases import gpu, variables


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

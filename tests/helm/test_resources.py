"""The pods' memory, CPUs and grace period follow from the settings."""

from __future__ import annotations

import pytest

from service.l1.format import Layout
from service.units import parse_size
from tests.helm.conftest import Install, Installed
from tests.helm.releases import gpu

UNITS = ("", "B", "k", "KB", "KiB", "Ki", "m", "MB", "MiB", "mi", "G", "GB", "GiB", "gi", "T", "TB", "TiB", "Ti")


def test_requests_are_limits_with_l1_inside(default: Installed) -> None:
    resources = default.container["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "1", "memory": "2Gi"}


@pytest.mark.parametrize(
    ("l1_size", "beside", "memory"),
    [
        ("1.5GiB", "512MiB", "2Gi"),
        ("100MB", "0", "100000000"),
        (1 << 34, 1 << 30, "17Gi"),
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
    assert parse_size(memory) == parse_size(f"1536.25{unit}")


def test_resources_can_be_given(install: Install) -> None:
    resources = {"requests": {"cpu": "1"}, "limits": {"memory": "32Gi"}}
    assert install({"resources": resources}).container["resources"] == resources
    counted = install({"resources": resources, **gpu("devicePlugin")}).container["resources"]
    assert counted["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}


def test_reserved_huge_pages_are_a_resource_of_their_own(install: Install) -> None:
    release = install({"settings": {"l1_size": "1025MiB", "l1_huge_pages": "reserved"}, "memoryBesideL1": "3GiB"})
    limits = {"cpu": "1", "memory": "3Gi", "hugepages-2Mi": "1030Mi"}
    assert release.container["resources"] == {"requests": limits, "limits": limits}


@pytest.mark.parametrize("l1_size", ["1MiB", "60MiB", "1GiB", "1025MiB", "33GiB", "1.5TiB"])
def test_the_huge_pages_hold_the_tables_of_l1_as_well(install: Install, l1_size: str) -> None:
    release = install({"settings": {"l1_size": l1_size, "l1_huge_pages": "reserved"}})
    pages = release.container["resources"]["limits"]["hugepages-2Mi"]
    assert parse_size(pages) == Layout(parse_size(l1_size)).total_bytes


@pytest.mark.parametrize(
    ("drain_timeout", "seconds"), [("20s", 30), ("90", 100), ("2m", 130), ("1.5 h", 5410), ("250ms", 11), (7, 17)]
)
def test_the_grace_period_covers_the_drain(install: Install, drain_timeout: str | int, seconds: int) -> None:
    release = install({"settings": {"drain_timeout": drain_timeout}})
    assert release.pod["terminationGracePeriodSeconds"] == seconds


def test_a_longer_grace_period_can_be_given(install: Install) -> None:
    assert install({"terminationGracePeriodSeconds": 300}).pod["terminationGracePeriodSeconds"] == 300

"""The depot's limits follow from the settings."""

from __future__ import annotations

from typing import Any

import pytest

from service.depot_settings import depot_limits
from service.load_settings import load


@pytest.mark.parametrize(
    ("given", "outlive"),
    [({}, False), ({"l1_file": "/dev/shm/kvdepot/l1"}, True), ({"l2": "disk:///d?size=1GiB"}, True)],
)
def test_chunks_outlive_a_depot_that_has_a_file_or_a_tier(given: dict[str, Any], outlive: bool) -> None:
    assert depot_limits(load(given)).chunks_outlive_depot is outlive

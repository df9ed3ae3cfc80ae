"""Errors of an attach: each that mapping memory can raise becomes one of the depot's."""

from __future__ import annotations

import pytest

import kernels.errors
from service.depot.attach import depot_error
from service.errors import BackendUnavailable, DepotError, RegionForbidden, RegionUnavailable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (kernels.errors.RegionError("gone"), RegionUnavailable),
        (kernels.errors.MemoryVanished(), RegionUnavailable),
        (kernels.errors.AccessDenied("another user's"), RegionForbidden),
        (kernels.errors.BackendError("no device"), BackendUnavailable),
    ],
)
def test_each_error_of_the_kernels_becomes_one_of_the_depot(error: Exception, expected: type[DepotError]) -> None:
    ours = depot_error(error)
    assert type(ours) is expected
    assert str(error) in str(ours)

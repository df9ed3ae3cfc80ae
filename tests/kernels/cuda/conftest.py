"""An engine that is attached to a depot on the fake device, where a test starts every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.cuda.depot import Attached


@pytest.fixture
def attached() -> Iterator[Attached]:
    attached = Attached()
    yield attached
    attached.close()

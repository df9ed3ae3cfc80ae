"""An engine that is attached to a depot on the fake device, where nothing happens unless a test says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernels.cuda.depot import Attached


@pytest.fixture
def attached() -> Iterator[Attached]:
    attached = Attached()
    yield attached
    attached.close()

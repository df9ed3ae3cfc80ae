"""Fixtures: the card in the test's own process, the stand-in for CuPy on it, and another process that owns memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernels.cuda import driver
from tests.gpu.simulated.in_process import CardInProcess, SmallOwner, card_in_process, stand_in


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CardInProcess]:
    with card_in_process(tmp_path) as card:
        monkeypatch.setattr(driver, "_library", lambda: card.library)
        with card.device_in_use():
            yield card
            card.library.card_fail(0)


@pytest.fixture
def cupy(card: CardInProcess) -> Any:
    cupy = stand_in()
    cupy.cuda.driver._library = lambda: card.library
    cupy.cuda.runtime._use_a_device = lambda: None
    return cupy


@pytest.fixture
def owner(card: CardInProcess) -> Iterator[SmallOwner]:
    owner = SmallOwner(card.path)
    yield owner
    owner.close()

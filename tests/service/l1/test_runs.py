"""A window of neighbours is whole if no chunk outside of it continues one in it."""

from __future__ import annotations

from service.l1.runs import _Window
from tests.service.l1.eviction.prompts import Prompts


def test_a_window_is_whole_when_all_that_continues_its_chunks_is_in_it() -> None:
    slots = [chunk.slot for chunk in Prompts(8).request("a", 3)]
    window = _Window()
    seen = []
    for slot in slots:
        window.add(slot)
        seen.append(window.is_whole)
    assert seen == [False, False, True]
    window.drop()
    assert window.is_whole, "the tail alone"


def test_a_window_that_begins_at_the_tail_is_whole_at_once() -> None:
    window = _Window()
    seen = []
    for chunk in reversed(Prompts(8).request("a", 3)):
        window.add(chunk.slot)
        seen.append(window.is_whole)
    assert seen == [True, True, True]
    window.drop()
    assert not window.is_whole, "what it dropped continues what it has"

"""Attached memory: no object belongs to two tenants, and there are never so many that others can't attach."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from service.depot import memory_objects as attached_memory
from service.depot.memory_objects import AttachedMemory, max_objects_of_process
from service.errors import RegionForbidden, TooManyObjects


def attach(memory: AttachedMemory, objects: Sequence[str], tenant: str = "") -> ExitStack:
    attached = ExitStack()
    attached.enter_context(memory.hold(objects, tenant))
    return attached


def test_one_tenant_cannot_take_what_others_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached_memory, "MAX_TENANT_OBJECTS", 3)
    memory = AttachedMemory(5)
    red = attach(memory, "ab", "red")
    with pytest.raises(TooManyObjects, match=r"2 objects .* these 2 .* more than 3"):
        attach(memory, "cd", "red")
    blue, more = attach(memory, "cd", "blue"), attach(memory, "e", "red")
    with pytest.raises(TooManyObjects, match="more than 5"):
        attach(memory, "f", "blue")
    attach(memory, [], "blue")  # inline: it has none
    red.close()
    attach(memory, "fg", "red").close()
    blue.close()
    more.close()


def test_memory_of_a_tenant_is_forbidden_to_others_until_its_last_attachment_ends() -> None:
    memory = AttachedMemory(100)
    first, second = attach(memory, "ab", "red"), attach(memory, "bc", "red")
    first.close()
    with pytest.raises(RegionForbidden):
        attach(memory, "b", "blue")
    attach(memory, "a", "blue")
    second.close()
    attach(memory, "b", "blue")


def test_half_of_the_descriptors_are_left_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1 << 20))
    assert max_objects_of_process() == 50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 40, 1 << 40))
    assert max_objects_of_process() < 1 << 39

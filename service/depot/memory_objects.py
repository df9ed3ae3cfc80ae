"""Whose shared memory is attached: no object of two tenants, and no more objects than leave room for others."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import RegionForbidden, TooManyObjects

MAX_TENANT_OBJECTS = 8192
"""A descriptor and two ranges of addresses each: 16 engines with memory of their own for K and V of 256 layers."""

_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


class AttachedMemory:
    """Counts the objects of all attachments, at most ``max_objects`` of them. The event loop alone touches it."""

    def __init__(self, max_objects: int) -> None:
        self._max_objects = max_objects
        self._objects: Counter[tuple[Hashable, str]] = Counter()
        self._num_objects: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<AttachedMemory {self._num_objects.total()}/{self._max_objects} objects>"

    @contextmanager
    def attached(self, objects: Collection[Hashable], tenant: str) -> Iterator[None]:
        """Count the objects of an attachment of a tenant while the block runs.

        Raises: RegionForbidden if another tenant has attached one of them; TooManyObjects.
        """
        if any(each in objects and whose != tenant for each, whose in self._objects):
            raise RegionForbidden("the memory is attached by another tenant")
        for num_objects, most in (
            (self._num_objects[tenant], MAX_TENANT_OBJECTS),
            (self._num_objects.total(), self._max_objects),
        ):
            if objects and num_objects + len(objects) > most:
                raise TooManyObjects(
                    f"{num_objects} objects of shared memory are attached already; with these {len(objects)} it would "
                    f"be more than {most}: let layers share an object"
                )
        mine = Counter((each, tenant) for each in objects)
        self._objects.update(mine)
        self._num_objects[tenant] += len(objects)
        try:
            yield
        finally:
            self._objects -= mine
            self._num_objects[tenant] -= len(objects)


def most_objects() -> int:
    """So many as leave half of this process's descriptors, and half of its ranges of addresses, for all the rest."""
    most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(most_files // 2, int(_MAX_MAP_COUNT.read_text()) // 4)

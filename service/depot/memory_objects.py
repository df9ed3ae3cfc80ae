"""The shared memory objects of all attachments: none belongs to two tenants, and their number is bounded."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import RegionForbidden, TooManyObjects

MAX_TENANT_OBJECTS = 8192
"""Enough for 16 engines with an object for each K and each V of 256 layers.

An object takes a descriptor and two address ranges.
"""

_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


class AttachedMemory:
    """The objects of all attachments, `max_objects` at most. Only the event loop uses it."""

    def __init__(self, max_objects: int) -> None:
        self._max_objects = max_objects
        self._objects: Counter[tuple[Hashable, str]] = Counter()
        self._num_objects: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<AttachedMemory {self._num_objects.total()}/{self._max_objects} objects>"

    @contextmanager
    def hold(self, objects: Collection[Hashable], tenant: str) -> Iterator[None]:
        """Count the objects of a tenant's attachment while the block runs. None may be attached by another tenant.

        Raises: RegionForbidden, TooManyObjects.
        """
        if any(each in objects and owner != tenant for each, owner in self._objects):
            raise RegionForbidden("the memory is attached by another tenant")
        for num_objects, max_objects in (
            (self._num_objects[tenant], MAX_TENANT_OBJECTS),
            (self._num_objects.total(), self._max_objects),
        ):
            if objects and num_objects + len(objects) > max_objects:
                raise TooManyObjects(
                    f"{num_objects} objects of shared memory are attached already; with these {len(objects)} it would "
                    f"be more than {max_objects}: let layers share an object"
                )
        added = Counter((each, tenant) for each in objects)
        self._objects.update(added)
        self._num_objects[tenant] += len(objects)
        try:
            yield
        finally:
            self._objects -= added
            self._num_objects[tenant] -= len(objects)


def max_objects_of_process() -> int:
    """Return the number of objects that take half of this process's descriptors and address ranges at most."""
    max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max_files // 2, int(_MAX_MAP_COUNT.read_text()) // 4)

"""What can go wrong when memory is described, mapped or moved."""

from __future__ import annotations


class GeometryError(ValueError):
    """A description that contradicts itself or reaches outside its region.

    ``field`` is the path of the value at fault, such as ``groups[0].planes[3].offset_bytes``.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class RegionUnavailable(Exception):
    """The memory can't be opened, or its size is not what was said."""


class MemoryVanished(RegionUnavailable):
    """The engine took memory away that is attached: it shrank the object, or punched a hole that can't be filled."""

    def __init__(self) -> None:
        super().__init__("the engine's memory is not there any more: it was shrunk, or a hole in it can't be filled")


class RegionForbidden(Exception):
    """The memory belongs to somebody the depot may not act for."""


class BackendUnavailable(Exception):
    """This machine lacks what the regions need."""


class TransferCancelled(Exception):
    """The transfer was stopped; what it had to write is undefined."""


class TransferFailed(Exception):
    """The device failed while bytes were being moved; what the transfer had to write is undefined."""

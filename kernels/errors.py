"""Errors of memory that is described, mapped or copied."""

from __future__ import annotations


class GeometryError(ValueError):
    """A description of memory contradicts itself, or reaches outside its region.

    `field` is the path of the wrong value, such as `groups[0].planes[3].offset_bytes`.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class RegionError(Exception):
    """An engine's memory can't be opened, has another size than announced, or is gone."""


class MemoryVanished(RegionError):
    """The engine took away memory that is attached: it shrank the object, or made a hole that can't be filled."""

    def __init__(self) -> None:
        super().__init__("the engine's memory is gone: it was shrunk, or a hole in it can't be filled")


class AccessDenied(Exception):
    """The memory belongs to another user, or its handle came over a connection that is not trusted with it."""


class BackendError(Exception):
    """This machine lacks what the memory needs."""


class DeviceFailed(Exception):
    """The device failed in a transfer. The bytes that the transfer was to write are undefined."""


class TransferCancelled(Exception):
    """The transfer was stopped. The bytes that it was to write are undefined."""

"""What every event has, and how its class is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic as monotonic_clock
from time import time as wall_clock
from typing import Protocol, Self, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
def fact(cls: type[T]) -> type[T]:
    """Make a slotted dataclass with keyword-only fields, compared by identity, that the type checker keeps frozen.

    `frozen=True` would set each field through `object.__setattr__`. The largest event would take four times as
    long to make, on the path that it watches.
    """
    return dataclass(slots=True, kw_only=True, eq=False)(cls)


@fact
class Event:
    """What every event has. Its type has the name of its class. An id is empty where there is none."""

    time: float = field(default_factory=wall_clock)
    """Seconds since the epoch, for people."""
    monotonic: float = field(default_factory=monotonic_clock)
    """Seconds of a clock that never jumps, for differences."""
    instance_id: str = ""
    """The id that the engine chose. Instances of two tenants may have the same one."""
    session_id: str = ""
    tenant: str = ""
    """Empty in a depot without tenants, and for an event of no tenant."""

    @property
    def instance_label(self) -> str:
        """`tenant/instance_id`, or the `instance_id` alone without a tenant: different for each instance."""
        return f"{self.tenant}/{self.instance_id}" if self.tenant and self.instance_id else self.instance_id

    def of_tenant(self, tenant: str) -> Self:
        """Set the tenant and return the event. Only a publisher does this, before any subscriber has the event."""
        object.__setattr__(self, "tenant", tenant)
        return self


class Publisher(Protocol):
    """What takes events: a bus, or a publisher in front of it."""

    def publish(self, event: Event) -> None:
        """Take the event over. Never blocks, never raises."""

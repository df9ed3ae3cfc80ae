"""Requests to pin, to list and to load prompts, made from callers' values."""

from __future__ import annotations

from typing import TypeAlias

from kvdepot.errors import invalid
from kvdepot.requests import PrefixLike, prefix_of
from kvdepot.v1 import cache_pb2
from kvdepot.v1.cache_pb2 import Pin
from kvdepot.wrong_arguments import duration, message

PinLike: TypeAlias = "Pin | str"
"""A pin as `pin_prefix` returned it, or its id."""


def pin_prefix(
    prefix: PrefixLike, ttl_seconds: float, instance_id: str, model_name: str, fixed_expire_time: bool
) -> cache_pb2.PinPrefixRequest:
    """Return the request to pin a prompt.

    Raises: InvalidArgument.
    """
    return message(
        cache_pb2.PinPrefixRequest,
        instance_id=instance_id,
        model_name=model_name,
        prefix=prefix_of(prefix),
        ttl=duration(ttl_seconds, "ttl_seconds"),
        fixed_expire_time=fixed_expire_time,
    )


def unpin_prefix(pin: PinLike, tenant: str) -> cache_pb2.UnpinPrefixRequest:
    """Return the request to end a pin.

    Raises: InvalidArgument.
    """
    pin_id = pin if isinstance(pin, str) else getattr(pin, "pin_id", "")
    if not pin_id:
        raise invalid("pin", f"is a {type(pin).__name__} without an id, not a pin")
    return message(cache_pb2.UnpinPrefixRequest, pin_id=pin_id, tenant=tenant)


def list_pins(page_size: int, page_token: str, tenant: str) -> cache_pb2.ListPinsRequest:
    """Return the request for a page of pins.

    Raises: InvalidArgument.
    """
    return message(cache_pb2.ListPinsRequest, page_size=page_size, page_token=page_token, tenant=tenant)


def prefetch(prefix: PrefixLike, instance_id: str, model_name: str) -> cache_pb2.PrefetchRequest:
    """Return the request to load a prompt.

    Raises: InvalidArgument.
    """
    return message(cache_pb2.PrefetchRequest, instance_id=instance_id, model_name=model_name, prefix=prefix_of(prefix))

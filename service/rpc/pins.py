"""Decodes and encodes the messages of pins and prefetches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from kvdepot.v1 import cache_pb2
from service.depot.depot import Depot
from service.depot.pin import Pin
from service.depot.tenant_depots import TenantDepots
from service.depot.values import PinAnswer, PinRequest, PrefetchAnswer, PrefetchRequest
from service.errors import invalid
from service.l1.keys import Prefix
from service.rpc import encode
from service.rpc.decode import MAX_NAME_BYTES, prefix_of
from service.rpc.violations import MAX_ID_BYTES, Violations

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
PINS_AT_ONCE = 100


def pin_request(message: cache_pb2.PinPrefixRequest) -> PinRequest:
    """Return the request of a pin.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    prefix = _named_prefix(wrong, message)
    ttl_seconds = message.ttl.seconds + message.ttl.nanos / 1e9
    if not message.HasField("ttl"):
        wrong.add("ttl", "is missing")
    elif ttl_seconds <= 0:
        wrong.add("ttl", "is not above 0")
    wrong.raise_any()
    return PinRequest(
        instance_id=message.instance_id,
        model_name=message.model_name,
        prefix=prefix,
        ttl_seconds=ttl_seconds,
        is_fixed=message.fixed_expire_time,
    )


def prefetch_request(message: cache_pb2.PrefetchRequest) -> PrefetchRequest:
    """Return the request of a prefetch.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    prefix = _named_prefix(wrong, message)
    wrong.raise_any()
    return PrefetchRequest(instance_id=message.instance_id, model_name=message.model_name, prefix=prefix)


def unpin_request(message: cache_pb2.UnpinPrefixRequest) -> str:
    """Return the id of the pin to end.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("pin_id", message.pin_id, max_bytes=MAX_ID_BYTES)
    wrong.raise_any()
    return message.pin_id


def pin_response(answer: PinAnswer, depot: Depot) -> cache_pb2.PinPrefixResponse:
    """Return what was pinned."""
    return cache_pb2.PinPrefixResponse(
        pin=pin_message(answer.pin, depot) if answer.pin is not None else None,
        was_pinned=answer.was_pinned,
        matched_tokens=answer.matched_tokens,
        l1_tokens=answer.matched_tokens - answer.l2_tokens,
        l2_tokens=answer.l2_tokens,
        miss=encode.miss(answer.miss) if answer.miss is not None else None,
    )


def prefetch_response(answer: PrefetchAnswer) -> cache_pb2.PrefetchResponse:
    """Return what is there of a prompt, and what begins to load."""
    seconds = answer.estimated_seconds
    return cache_pb2.PrefetchResponse(
        l1_tokens=answer.l1_tokens,
        l2_tokens=answer.l2_tokens,
        loading_bytes=answer.loading_bytes,
        loading_tokens=answer.loading_tokens,
        estimated_duration=encode.duration(seconds) if seconds is not None else None,
        miss=encode.miss(answer.miss) if answer.miss is not None else None,
    )


def pin_message(pin: Pin, depot: Depot) -> cache_pb2.Pin:
    """Return what a pin is now."""
    return cache_pb2.Pin(
        pin_id=pin.pin_id,
        tenant=depot.tenant,
        model_name=pin.model_name,
        adapter=pin.adapter,
        num_tokens=pin.num_tokens,
        num_chunks=pin.num_chunks,
        num_bytes=pin.num_bytes,
        create_time=encode.timestamp(pin.create_time),
        expire_time=encode.timestamp(pin.expire_time),
        ttl=encode.duration(pin.ttl_seconds),
        fixed_expire_time=pin.is_fixed,
        num_hits=pin.num_hits,
        last_hit_time=encode.timestamp(pin.last_hit_time) if pin.last_hit_time is not None else None,
    )


async def list_pins(
    depots: TenantDepots, request: cache_pb2.ListPinsRequest, tenant: str
) -> cache_pb2.ListPinsResponse:
    """Return a page of the pins of a tenant ("": of all).

    Raises: InvalidRequest.
    """
    # The tenant (empty without tenants) and the number of the last pin on the page before.
    at_tenant, _, number = request.page_token.rpartition("/")
    if request.page_token and not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise invalid("page_token", "is not from an answer of this RPC")
    if request.page_size > MAX_PAGE_SIZE:
        raise invalid("page_size", f"is more than {MAX_PAGE_SIZE}")
    page_size = request.page_size or DEFAULT_PAGE_SIZE
    page = list(islice(_pins(depots, tenant, at_tenant, int(number or 0)), page_size + 1))
    pins: list[cache_pb2.Pin] = []
    pace = depots.slices.pace()
    for depot, pin in page[:page_size]:
        pins.append(pin_message(pin, depot))
        if len(pins) % PINS_AT_ONCE == 0 and pace.is_over():
            await pace.next()
    token = ""
    if len(page) > page_size:
        depot, pin = page[page_size - 1]
        token = f"{depot.tenant}/{pin.number}"
    return cache_pb2.ListPinsResponse(pins=pins, next_page_token=token)


def _pins(depots: TenantDepots, tenant: str, at_tenant: str, after: int) -> Iterator[tuple[Depot, Pin]]:
    """Yield pins by tenant, the oldest first. Begin at `at_tenant`, above the number `after`."""
    for depot in sorted(depots, key=lambda depot: depot.tenant):
        if tenant in ("", depot.tenant) and depot.tenant >= at_tenant:
            first = after if depot.tenant == at_tenant else 0
            yield from ((depot, pin) for pin in depot.pins if pin.number > first)


def _named_prefix(wrong: Violations, message: cache_pb2.PinPrefixRequest | cache_pb2.PrefetchRequest) -> Prefix:
    wrong.check_text("instance_id", message.instance_id, max_bytes=MAX_ID_BYTES, required=False)
    wrong.check_text("model_name", message.model_name, max_bytes=MAX_NAME_BYTES, required=False)
    if bool(message.instance_id) == bool(message.model_name):
        what = "is set" if message.instance_id else "is missing"
        wrong.add("instance_id", f"{what}, and so is model_name: one of them is expected")
    return prefix_of(wrong, "prefix", message.prefix)

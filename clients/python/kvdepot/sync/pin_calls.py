# Generated from aio/pin_calls.py by `make docs`: edit that file.
"""The calls that keep prompts in L1, or load them ahead of a request, with blocking calls."""

from __future__ import annotations

from kvdepot import pin_requests
from kvdepot.pin_requests import PinLike
from kvdepot.requests import PrefixLike
from kvdepot.sync.calls import Calls
from kvdepot.v1 import cache_pb2


class PinCalls:
    """What `DepotClient` has to pin and to prefetch."""

    _calls: Calls

    def pin_prefix(
        self,
        prefix: PrefixLike,
        ttl_seconds: float,
        *,
        instance_id: str = "",
        model_name: str = "",
        fixed_expire_time: bool = False,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.PinPrefixResponse:
        """Keep the chunks of a prompt in L1 for `ttl_seconds`, and for as long again from each lookup that finds them.

        Give the instance, or its model. What a tier has is loaded. Chunks that are stored later are not pinned: call
        again. The same prompt has one pin. With `fixed_expire_time` lookups do not put off its end.
        """
        request = pin_requests.pin_prefix(prefix, ttl_seconds, instance_id, model_name, fixed_expire_time)
        return self._calls.unary(self._calls.cache.PinPrefix, request, timeout_seconds)

    def unpin_prefix(
        self, pin: PinLike, *, tenant: str = "", timeout_seconds: float | None = None
    ) -> cache_pb2.UnpinPrefixResponse:
        """End a pin before its time. A pin that has ended already is no error: then the response has none."""
        request = pin_requests.unpin_prefix(pin, tenant)
        return self._calls.unary(self._calls.cache.UnpinPrefix, request, timeout_seconds)

    def list_pins(
        self, *, page_size: int = 0, page_token: str = "", tenant: str = "", timeout_seconds: float | None = None
    ) -> cache_pb2.ListPinsResponse:
        """Return a page of the pins that the caller may see, the oldest first."""
        request = pin_requests.list_pins(page_size, page_token, tenant)
        return self._calls.unary(self._calls.cache.ListPins, request, timeout_seconds)

    def prefetch(
        self,
        prefix: PrefixLike,
        *,
        instance_id: str = "",
        model_name: str = "",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.PrefetchResponse:
        """Begin to load the chunks of a prompt from the tiers behind L1. The answer does not wait for the loads.

        Give the instance, or its model. Nothing is leased: look up the prompt when its request has come.
        """
        request = pin_requests.prefetch(prefix, instance_id, model_name)
        return self._calls.unary(self._calls.cache.Prefetch, request, timeout_seconds)

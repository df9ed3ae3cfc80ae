"""The client for an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import Self

import grpc

from kvdepot import requests
from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.aio.calls import AsyncCalls
from kvdepot.channel import DEFAULT_TIMEOUT_SECONDS
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError
from kvdepot.requests import LeaseLike, PrefixLike
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2


class AsyncDepotClient:
    """A connection to one depot, for as many instances and sessions as share it; made on the loop that uses it.

    ``address`` is ``host:port`` or ``unix:/path``; without ``credentials`` there is no TLS, and no token. Methods give
    the messages of the contract (`kvdepot.v1`) and raise `DepotError`. Every call ends within ``timeout_seconds``, its
    own or else the client's; the streams of `attach` and `watch_events` live until they are closed. No connection is
    made before the first call. Where the depot has tenants, ``tenant`` is for admins: whose things they mean.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._calls = AsyncCalls(address, credentials, timeout_seconds)
        self._attachments: set[AsyncAttachment] = set()  # those whose stream lives

    async def attach(
        self,
        *,
        instance_id: str,
        model_name: str,
        groups: Iterable[cache_pb2.KvGroup],
        regions: Iterable[cache_pb2.MemoryRegion] = (),
        world_size: int = 1,
        rank: int = 0,
        on_lost: Callable[[DepotError], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> AsyncAttachment:
        """Registers one rank and the memory of its paged KV buffer, and waits for the acknowledgement.

        ``on_lost`` is called once, on the loop, if the stream ends before `AsyncAttachment.close`.
        """
        request = requests.attach(instance_id, model_name, groups, regions, world_size, rank)
        timeout = self._calls.timeout(timeout_seconds)
        attachment = AsyncAttachment(self, self._calls, self._attachments, request, on_lost)
        try:
            await attachment._wait_acknowledged(timeout)
        except BaseException:
            await attachment.close()
            raise
        return attachment

    async def lookup(
        self,
        instance_id: str,
        session_id: str,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Finds the longest prefix of whole chunks that every rank of the instance holds, and leases it.

        ``computed_tokens`` are in the engine already. While a chunk that would make the match longer is being stored,
        the depot waits for it, at most ``max_wait_seconds``.
        """
        request = requests.lookup(instance_id, session_id, prefix, computed_tokens, max_wait_seconds)
        timeout = self._calls.timeout(timeout_seconds, added_seconds=max_wait_seconds)
        return await self._calls.unary(self._calls.cache.Lookup, request, timeout)

    async def release_lease(
        self, lease: LeaseLike, *, timeout_seconds: float | None = None
    ) -> cache_pb2.ReleaseLeaseResponse:
        """Gives a lease back before it expires; one that has ended already is no error."""
        request = requests.release_lease(lease)
        return await self._calls.unary(self._calls.cache.ReleaseLease, request, self._calls.timeout(timeout_seconds))

    async def end_session(
        self, instance_id: str, session_id: str, *, timeout_seconds: float | None = None
    ) -> cache_pb2.EndSessionResponse:
        """Ends a session: stops its retrieves, ends its leases, answers with what it did."""
        request = requests.end_session(instance_id, session_id)
        return await self._calls.unary(self._calls.cache.EndSession, request, self._calls.timeout(timeout_seconds))

    async def report_block_allocation(
        self,
        instance_id: str,
        model_name: str,
        block_size: int,
        records: Iterable[observability_pb2.BlockAllocationRecord],
        *,
        timeout_seconds: float | None = None,
    ) -> observability_pb2.ReportBlockAllocationResponse:
        """Tells which physical blocks the scheduler gave to which sessions; see `allocation_record`."""
        request = requests.report_block_allocation(instance_id, model_name, block_size, records)
        return await self._calls.unary(
            self._calls.observability.ReportBlockAllocation, request, self._calls.timeout(timeout_seconds)
        )

    def watch_events(
        self,
        *,
        event_types: Iterable[str] = (),
        instance_id: str = "",
        session_id: str = "",
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[observability_pb2.WatchEventsResponse, None]:
        """The live event feed; without a timeout it goes on until the iterator is closed."""
        request = requests.watch_events(event_types, instance_id, session_id, tenant)
        timeout = None if timeout_seconds is None else self._calls.timeout(timeout_seconds)
        return self._calls.stream(self._calls.observability.WatchEvents, request, timeout)

    async def list_sessions(
        self,
        *,
        instance_id: str = "",
        page_size: int = 0,
        page_token: str = "",
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> observability_pb2.ListSessionsResponse:
        """Sessions that live or ended recently, without operations, the last that began first."""
        request = requests.list_sessions(instance_id, page_size, page_token, tenant)
        return await self._calls.unary(
            self._calls.observability.ListSessions, request, self._calls.timeout(timeout_seconds)
        )

    async def get_session(
        self, instance_id: str, session_id: str, *, tenant: str = "", timeout_seconds: float | None = None
    ) -> observability_pb2.GetSessionResponse:
        """The timeline of one session, live or recently ended."""
        request = requests.get_session(instance_id, session_id, tenant)
        return await self._calls.unary(
            self._calls.observability.GetSession, request, self._calls.timeout(timeout_seconds)
        )

    async def get_status(self, *, timeout_seconds: float | None = None) -> admin_pb2.GetStatusResponse:
        """How the depot is."""
        request = admin_pb2.GetStatusRequest()
        return await self._calls.unary(self._calls.admin.GetStatus, request, self._calls.timeout(timeout_seconds))

    async def list_instances(self, *, timeout_seconds: float | None = None) -> admin_pb2.ListInstancesResponse:
        """Who is attached."""
        request = admin_pb2.ListInstancesRequest()
        return await self._calls.unary(self._calls.admin.ListInstances, request, self._calls.timeout(timeout_seconds))

    async def clear_cache(
        self,
        *,
        model_name: str = "",
        cache_salt: str | None = None,
        force: bool = False,
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> admin_pb2.ClearCacheResponse:
        """Removes chunks that match every filter given; those that are leased only with ``force``."""
        request = requests.clear_cache(model_name, cache_salt, force, tenant)
        return await self._calls.unary(self._calls.admin.ClearCache, request, self._calls.timeout(timeout_seconds))

    async def close(self) -> None:
        """Detaches what is attached through this client, and ends the connection."""
        for attachment in list(self._attachments):
            await attachment.close()
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

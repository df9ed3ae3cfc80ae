# Generated from aio/client.py by `make docs`: edit that file.
"""The client with blocking calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from kvdepot import requests
from kvdepot.attach_request import attach_request
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError
from kvdepot.requests import LeaseLike, PrefixLike
from kvdepot.rpc import DEFAULT_TIMEOUT_SECONDS
from kvdepot.sync.attachment import Attachment
from kvdepot.sync.calls import Calls
from kvdepot.sync.pin_calls import PinCalls
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.wrong_arguments import duration, message


class DepotClient(PinCalls):
    """A connection to one depot, shared by any number of instances, sessions and threads.

    `address` is `host:port` or `unix:/path`. Without `credentials` there is no TLS, and no token. Methods
    return messages of the contract (`kvdepot.v1`) and raise `DepotError`; arguments that no call can carry raise its
    subclass `InvalidArgument`, and calls after `close` raise `Closed`. Every call ends within `timeout_seconds`,
    its own or else the client's. The streams of `attach` and `watch_events` live until they are closed. No connection
    is made before the first call. If the depot has tenants, an admin names one in `tenant`.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials | grpc.ChannelCredentials | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._calls = Calls(address, credentials, timeout_seconds)
        self._attachments: set[Attachment] = set()  # those with a live stream

    def attach(
        self,
        *,
        instance_id: str,
        model_name: str,
        groups: Iterable[cache_pb2.KvGroup],
        regions: Iterable[cache_pb2.MemoryRegion] = (),
        world_size: int = 1,
        rank: int = 0,
        on_lost: Callable[[DepotError], None] | None = None,
        prefill_tokens_per_second: float | None = None,
        model_revision: str = "",
        block_hash_seed: str = "",
        chunk_size: int = 0,
        timeout_seconds: float | None = None,
    ) -> Attachment:
        """Register one rank and the memory of its paged KV buffer, and wait for the acknowledgement.

        `regions` is the memory of the groups: `shared.regions`. An engine without shared memory has none, and
        describes its groups by `Layout.without_memory`. `prefill_tokens_per_second` is how many tokens of a prompt the
        engine computes in a second: the depot reports with it how much time it saved.

        `model_revision` is the revision of the weights: instances share KV only if it is equal, also with engines that
        have ended. `block_hash_seed` names the algorithm and the seed of the engine's block hashes, such as
        "sha256_cbor seed=0", for engines that name prompts by hashes; empty: no other process has the same hashes.
        `chunk_size` is the tokens of a chunk, a multiple of each group's block size; 0: one near the depot's own.

        `on_lost` is called once, in the attachment's thread, if the stream ends before `Attachment.close`.
        """
        self._calls.require_open()
        request = attach_request(
            instance_id,
            model_name,
            groups,
            regions,
            world_size,
            rank,
            prefill_tokens_per_second,
            model_revision,
            block_hash_seed,
            chunk_size,
        )
        timeout = self._calls.timeout(timeout_seconds)
        attachment = Attachment(self._calls, self._attachments, request, on_lost)
        try:
            attachment._wait_acknowledged(timeout)
        except BaseException:
            attachment.close()
            raise
        return attachment

    def lookup(
        self,
        instance_id: str,
        session_id: str,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        prefill_tokens_per_second: float | None = None,
        will_continue: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Find the longest prefix of whole chunks that every rank of the instance holds, and lease it.

        `computed_tokens` are in the engine already. The depot waits, at most `max_wait_seconds`, while another
        store writes a chunk that makes the match longer.

        `prefill_tokens_per_second` is how many tokens of a prompt the engine computes in a second, as it measured
        lately. The depot then reads from a slower tier only what it reads sooner than the engine computes it.

        `will_continue` says that the prompt is likely to come again soon with more tokens, as those of chats and agents
        do: its chunks may then stay in L1 for longer. None: as the session said before.
        """
        request = requests.lookup(
            instance_id,
            session_id,
            prefix,
            computed_tokens,
            max_wait_seconds,
            prefill_tokens_per_second,
            will_continue,
        )
        return self._calls.unary(self._calls.cache.Lookup, request, timeout_seconds, added_seconds=max_wait_seconds)

    def release_lease(
        self, lease: LeaseLike, *, timeout_seconds: float | None = None
    ) -> cache_pb2.ReleaseLeaseResponse:
        """End a lease before it expires. A lease that has ended already is no error."""
        request = requests.release_lease(lease)
        return self._calls.unary(self._calls.cache.ReleaseLease, request, timeout_seconds)

    def end_session(
        self, instance_id: str, session_id: str, *, timeout_seconds: float | None = None
    ) -> cache_pb2.EndSessionResponse:
        """End a session, its retrieves and its leases, and return what it did."""
        request = requests.end_session(instance_id, session_id)
        return self._calls.unary(self._calls.cache.EndSession, request, timeout_seconds)

    def report_block_allocation(
        self,
        instance_id: str,
        model_name: str,
        block_size: int,
        records: Iterable[observability_pb2.BlockAllocationRecord],
        *,
        timeout_seconds: float | None = None,
    ) -> observability_pb2.ReportBlockAllocationResponse:
        """Report which physical blocks the scheduler gave to which sessions; see `allocation_record`."""
        request = message(
            observability_pb2.ReportBlockAllocationRequest,
            instance_id=instance_id,
            model_name=model_name,
            block_size=block_size,
            records=records,
        )
        return self._calls.unary(self._calls.observability.ReportBlockAllocation, request, timeout_seconds)

    def watch_events(
        self,
        *,
        event_types: Iterable[str] = (),
        instance_id: str = "",
        session_id: str = "",
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> Generator[observability_pb2.WatchEventsResponse, None, None]:
        """Iterate over the live event feed. Without a timeout it continues until the iterator is closed."""
        request = message(
            observability_pb2.WatchEventsRequest,
            event_types=event_types,
            instance_id=instance_id,
            session_id=session_id,
            tenant=tenant,
        )
        timeout = None if timeout_seconds is None else self._calls.timeout(timeout_seconds)
        return self._calls.stream(self._calls.observability.WatchEvents, request, timeout)

    def list_sessions(
        self,
        *,
        instance_id: str = "",
        page_size: int = 0,
        page_token: str = "",
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> observability_pb2.ListSessionsResponse:
        """Return a page of sessions that live or ended recently, without operations, the newest first."""
        request = message(
            observability_pb2.ListSessionsRequest,
            instance_id=instance_id,
            page_size=page_size,
            page_token=page_token,
            tenant=tenant,
        )
        return self._calls.unary(self._calls.observability.ListSessions, request, timeout_seconds)

    def get_session(
        self, instance_id: str, session_id: str, *, tenant: str = "", timeout_seconds: float | None = None
    ) -> observability_pb2.GetSessionResponse:
        """Return the timeline of one session, live or recently ended."""
        request = message(
            observability_pb2.GetSessionRequest, instance_id=instance_id, session_id=session_id, tenant=tenant
        )
        return self._calls.unary(self._calls.observability.GetSession, request, timeout_seconds)

    def explain_prefix(
        self,
        prefix: PrefixLike,
        *,
        instance_id: str = "",
        model_name: str = "",
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> observability_pb2.ExplainPrefixResponse:
        """Return what a lookup of the prompt would find now, and why not more. It takes no lease and changes nothing.

        Give the instance, or its model.
        """
        request = requests.explain_prefix(prefix, instance_id, model_name, tenant)
        return self._calls.unary(self._calls.observability.ExplainPrefix, request, timeout_seconds)

    def get_activity(
        self,
        *,
        after: Timestamp | None = None,
        resolution: observability_pb2.ActivityResolution.ValueType = observability_pb2.ACTIVITY_RESOLUTION_SECOND,
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> observability_pb2.GetActivityResponse:
        """Return what the depot did, in buckets of time that start later than `after`, and the busiest sessions."""
        request = observability_pb2.GetActivityRequest(after=after, resolution=resolution, tenant=tenant)
        return self._calls.unary(self._calls.observability.GetActivity, request, timeout_seconds)

    def get_status(self, *, timeout_seconds: float | None = None) -> admin_pb2.GetStatusResponse:
        """Return the depot's state, its tiers and its counts."""
        request = admin_pb2.GetStatusRequest()
        return self._calls.unary(self._calls.admin.GetStatus, request, timeout_seconds)

    def list_instances(self, *, timeout_seconds: float | None = None) -> admin_pb2.ListInstancesResponse:
        """Return the instances that are attached, with their ranks."""
        request = admin_pb2.ListInstancesRequest()
        return self._calls.unary(self._calls.admin.ListInstances, request, timeout_seconds)

    def get_hit_curve(
        self,
        *,
        window_seconds: float | None = None,
        tenant: str = "",
        model_name: str = "",
        timeout_seconds: float | None = None,
    ) -> admin_pb2.GetHitCurveResponse:
        """Return what other sizes of L1 and other eviction policies would have hit, and advice about them.

        It looks back `window_seconds`, or as far as the depot can.
        """
        window = duration(window_seconds, "window_seconds") if window_seconds is not None else None
        request = message(admin_pb2.GetHitCurveRequest, window=window, tenant=tenant, model_name=model_name)
        return self._calls.unary(self._calls.admin.GetHitCurve, request, timeout_seconds)

    def clear_cache(
        self,
        *,
        model_name: str = "",
        cache_salt: str | None = None,
        force: bool = False,
        tenant: str = "",
        timeout_seconds: float | None = None,
    ) -> admin_pb2.ClearCacheResponse:
        """Remove the chunks that match all given filters. Leased chunks are removed only with `force`."""
        request = message(
            admin_pb2.ClearCacheRequest, model_name=model_name, cache_salt=cache_salt, force=force, tenant=tenant
        )
        return self._calls.unary(self._calls.admin.ClearCache, request, timeout_seconds)

    def set_log_level(
        self,
        level: str = "",
        *,
        logger: str = "",
        for_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> admin_pb2.SetLogLevelResponse:
        """Change what the depot logs: `level` is debug, info, warning or error; empty: what its settings say.

        It holds for `for_seconds`, or until the depot restarts, for one `logger` or for the whole log.
        """
        request = requests.set_log_level(level, logger, for_seconds)
        return self._calls.unary(self._calls.admin.SetLogLevel, request, timeout_seconds)

    def close(self) -> None:
        """Detach every rank that this client attached, and end the connection. Later calls raise `Closed`."""
        for attachment in list(self._attachments):
            attachment.close()
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

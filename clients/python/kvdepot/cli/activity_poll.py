"""Asks a depot for its activity, again and again. A depot that does not answer is asked anew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import grpc

from kvdepot import Credentials, DepotClient, DepotError
from kvdepot.cli.activity_view import OPERATIONS, History
from kvdepot.cli.cause import Cause
from kvdepot.cli.failures import why
from kvdepot.v1 import admin_pb2, cache_pb2

TIMEOUT_SECONDS = 2.0
_KINDS = {name: kind for kind, name in OPERATIONS.items()}


class DepotActivity:
    """What a depot answered. After a failure, `failure` says why, and what to do. The last values stay.

    `tiers` are those behind L1. A caller that is no admin gets no `instances`, no `tiers`, no `state` and no `uptime`.
    """

    def __init__(self, address: str, credentials: Credentials, tenant: str) -> None:
        self.address = address
        self.tenant = tenant
        self.history = History()
        self.instances: Sequence[admin_pb2.Instance] = ()
        self.tiers: Sequence[admin_pb2.TierStatus] = ()
        self.version = ""
        self.state = ""
        self.uptime: timedelta | None = None
        self.num_adopted_chunks = 0
        self.failure: Cause | str = ""
        self.answered: datetime | None = None
        self._credentials = credentials
        self._client: DepotClient | None = None
        self._is_admin = True

    @property
    def problem(self) -> str:
        """Why the depot did not answer the last time, in one line. Empty: it did."""
        return self.failure.problem if isinstance(self.failure, Cause) else self.failure

    def poll(self) -> None:
        """Ask for what is new.

        Raises: DepotError, ValueError, OSError.
        """
        try:
            self._ask()
        except (DepotError, ValueError, OSError) as error:
            self.failure = why(error, self.address, self._credentials)
            self.close()  # gRPC would wait longer and longer until it connects again
            raise
        self.failure = ""
        self.answered = datetime.now().astimezone()

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    @staticmethod
    def kind_of(operation: str) -> cache_pb2.OperationKind.ValueType:
        """Return the number of a kind of operations."""
        return _KINDS[operation]

    def _ask(self) -> None:
        if self._client is None:
            self._client = DepotClient(self.address, credentials=self._credentials, timeout_seconds=TIMEOUT_SECONDS)
        client, buckets = self._client, self.history.buckets
        self.history.add(client.get_activity(after=buckets[-1].start_time if buckets else None, tenant=self.tenant))
        if not self._is_admin:
            return
        try:
            status = client.get_status()
            instances = client.list_instances().instances
        except DepotError as error:
            if error.code is not grpc.StatusCode.PERMISSION_DENIED:
                raise
            self._is_admin = False
            return
        self.version = status.version
        self.state = admin_pb2.ServerState.Name(status.state).removeprefix("SERVER_STATE_").lower()
        self.uptime = timedelta(seconds=status.uptime.seconds)
        self.num_adopted_chunks = status.num_adopted_chunks
        self.tiers = [tier for tier in status.tiers if tier.tier != cache_pb2.TIER_L1]
        self.instances = [each for each in instances if self.tenant in ("", each.tenant)]

"""The namespaces that have chunks, and what each tenant has."""

from __future__ import annotations

from collections.abc import Iterable

from service.l1.chunk import NamespaceStats
from service.l1.keys import Namespace


class Namespaces:
    """The stats of every namespace that has chunks."""

    def __init__(self) -> None:
        self._stats: dict[Namespace, NamespaceStats] = {}
        self._num_chunks_by_tenant: dict[str, int] = {}
        self.used_bytes_by_tenant: dict[str, int] = {}
        """The bytes of the slots of each tenant's chunks; 0 for tenants that had chunks before."""

    def __repr__(self) -> str:
        return f"<Namespaces {len(self._stats)}>"

    def has_chunks(self, namespace: Namespace) -> bool:
        """Return whether the namespace has chunks."""
        return namespace in self._stats

    def all(self) -> Iterable[NamespaceStats]:
        """Return the stats of every namespace that has chunks."""
        return self._stats.values()

    def stats(
        self,
        namespace: Namespace,
        *,
        model_name: str,
        cache_salt: str,
        rank: int,
        tenant: str = "",
        adapter: str = "",
        world_size: int = 1,
        geometry: bytes = b"",
        hash_block_size: int = 0,
        chunk_size: int = 256,
        chunk_bytes: int = 0,
        model_revision: str = "",
        block_hash_seed: str = "",
    ) -> NamespaceStats:
        """Return the stats of a namespace, new ones if it has no chunks. They are kept while it has chunks."""
        return self._stats.get(namespace) or NamespaceStats(
            *(namespace, model_name, cache_salt, rank, tenant, adapter, world_size, geometry, hash_block_size),
            *(chunk_size, chunk_bytes, model_revision, block_hash_seed),
        )

    def kept(self, stats: NamespaceStats) -> NamespaceStats:
        """Return the stats that are kept for their namespace: these, if there are no others."""
        return self._stats.setdefault(stats.namespace, stats)

    def count(self, stats: NamespaceStats, num_chunks: int, num_bytes: int) -> None:
        """Count chunks that come, or that leave if the numbers are negative. Stats without chunks are not kept."""
        stats.num_chunks += num_chunks
        tenant = stats.tenant
        self._num_chunks_by_tenant[tenant] = self._num_chunks_by_tenant.get(tenant, 0) + num_chunks
        self.used_bytes_by_tenant[tenant] = self.used_bytes_by_tenant.get(tenant, 0) + num_bytes
        if stats.num_chunks == 0:
            del self._stats[stats.namespace]

    def chunks_and_bytes_by_tenant(self) -> dict[str, tuple[int, int]]:
        """Return, for each tenant that has any, the number of its chunks and the bytes of their slots."""
        return {
            tenant: (count, self.used_bytes_by_tenant[tenant])
            for tenant, count in self._num_chunks_by_tenant.items()
            if count
        }

    def check(self, num_chunks: int) -> None:
        """Assert that the counts of namespaces and of tenants are those of all chunks."""
        assert all(stats.num_chunks for stats in self._stats.values())
        assert sum(stats.num_chunks for stats in self._stats.values()) == num_chunks
        assert sum(self._num_chunks_by_tenant.values()) == num_chunks
        assert all(used >= 0 for used in self.used_bytes_by_tenant.values())

"""Operations on the cache: attach, lookup, store, retrieve, sessions, leases, and a depot for each tenant."""

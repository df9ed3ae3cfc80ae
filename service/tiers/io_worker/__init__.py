"""I/O workers: child processes that map L1, carry out the blocking calls of one tier's store, and can be killed."""

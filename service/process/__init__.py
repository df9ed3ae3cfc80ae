"""The server's own process: garbage collection, the heap, and the forced exit."""

"""What the server sets up for its own process: garbage collection, the heap, and the forced exit."""

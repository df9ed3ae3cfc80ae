"""What is cached: the memory of L1, its slots, its index of chunks, and the keys of chunks."""

"""What a tier asks, reads and writes: queues, bounds, rates, counts."""

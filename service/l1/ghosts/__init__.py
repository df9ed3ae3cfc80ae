"""What caches of other sizes and policies would have hit: simulations over a sample of the keys."""

"""L2: slower stores of chunks behind L1."""

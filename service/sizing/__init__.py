"""What a larger, a smaller or another L1 would have hit, for those who decide about its size."""

"""A subscriber of one's own."""

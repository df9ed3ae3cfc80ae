"""Blocks in the host's memory, copied by threads."""

"""Layouts of paged KV buffers: an engine's tensors described as the contract's groups and planes."""

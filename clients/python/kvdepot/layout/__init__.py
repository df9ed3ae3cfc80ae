"""Layouts of paged KV buffers: from an engine's tensors to what the depot must know of them."""

"""An example engine whose KV cache a depot keeps: continuous batching, and `kvdepot.connector`."""

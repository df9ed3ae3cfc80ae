"""The checks of `kvdepot check-engine`, which run in a process of the engine's own."""

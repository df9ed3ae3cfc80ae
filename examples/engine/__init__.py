"""An example engine with continuous batching. It uses a depot through `kvdepot.connector`."""

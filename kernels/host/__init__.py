"""The host backend: blocks and chunks in this machine's memory, copied by threads."""

"""LMCache's multiprocess server, which a user would pick instead, measured beside kvdepot on the CPU in one run."""

"""LMCache's multiprocess server, an alternative to kvdepot, measured with kvdepot on the CPU in one run."""

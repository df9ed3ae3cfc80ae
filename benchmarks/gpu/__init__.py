"""Store and retrieve over CUDA IPC beside the link's limit: run by ``python -m benchmarks.gpu``."""

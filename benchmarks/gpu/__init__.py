"""Store and retrieve over CUDA IPC, compared with the link's limit: run by ``python -m benchmarks.gpu``."""

"""Moving blocks on CUDA: the kernel, and the backend that schedules it on streams of its own."""

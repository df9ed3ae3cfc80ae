"""Two engines that share a prompt through a depot; run by ``python -m service demo``."""

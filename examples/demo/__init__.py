"""Two engines that share a prompt through a depot; run by ``kvdepot demo``."""

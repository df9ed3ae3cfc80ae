"""Three depots on one host that share slower tiers, and engines that move between them."""

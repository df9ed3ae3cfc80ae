"""Memory that an engine shares with the depot, and how much memory the machine has left."""

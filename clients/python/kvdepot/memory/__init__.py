"""Memory that an engine shares with the depot, and how much of it the machine has left."""

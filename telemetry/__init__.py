"""Events, the bus that delivers them, and its subscribers."""

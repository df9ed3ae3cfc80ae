"""Who listens to the bus, one file each."""

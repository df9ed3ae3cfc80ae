"""The engine-neutral parts of a connector: the connection to the depot, lookups, commands, reports."""

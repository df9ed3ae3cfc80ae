"""Recording: what requests asked of the depot, as a trace in Mooncake's format, without tokens and without keys."""

"""Activity: what the depot did in the last hour, counted in buckets of time, for pages that show it live."""

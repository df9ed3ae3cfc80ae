"""What a tier forgets: chunks that were cleared, and records that are to be erased."""

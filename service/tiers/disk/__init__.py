"""The index of a disk tier: which chunks it has, where, and which leave next."""

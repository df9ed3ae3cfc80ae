"""Which chunk leaves L1 for another one."""

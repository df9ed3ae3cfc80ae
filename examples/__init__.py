"""Programs that use kvdepot."""

"""What the project's own engineers run."""

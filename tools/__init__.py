"""Programs for the project's own engineers."""

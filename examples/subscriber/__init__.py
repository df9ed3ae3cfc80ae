"""Your own subscriber."""

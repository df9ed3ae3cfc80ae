"""The commands that call a depot."""

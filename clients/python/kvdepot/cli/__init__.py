"""Commands that speak to a depot."""

"""Events as spans, and their export."""

"""Events as log lines, and output that never blocks."""

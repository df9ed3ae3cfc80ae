"""How log lines are written, and how a storm of them is held back."""

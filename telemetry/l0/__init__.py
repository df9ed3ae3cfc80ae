"""The lifecycle of the engines' blocks (L0), from the engines' reports."""

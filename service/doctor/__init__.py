"""`python -m service doctor`: finds what would make an installation fail."""

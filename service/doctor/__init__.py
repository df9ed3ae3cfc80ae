"""`kvdepot doctor`: finds what would make an installation fail."""

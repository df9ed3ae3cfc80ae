"""What is measured, where the figures are kept, and how they are exported."""

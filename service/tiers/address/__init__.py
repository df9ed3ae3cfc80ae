"""The addresses of tiers, their options, and what follows from these."""

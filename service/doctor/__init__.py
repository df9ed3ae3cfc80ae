"""`python -m service doctor`: what makes installations fail, looked for before it does."""

"""Transfers between engines' blocks and L1: address plans, mapped memory, and a backend each for host and GPU."""

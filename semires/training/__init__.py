"""Burn-in and mutual learning, and the loop that both share."""

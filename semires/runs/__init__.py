"""Runs: which training, where its files are, and its record."""

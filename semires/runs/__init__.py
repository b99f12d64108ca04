"""Runs: the key, the paths and the record of a training."""

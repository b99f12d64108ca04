"""Proposals: where they come from, the partition that stores them, and the cache on disk."""

from semires.proposals.partition import Partition

__all__ = ["Partition"]

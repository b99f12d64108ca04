"""Proposals: SAM's segment-everything masks of an image, stored as a partition of its pixels."""

from semires.refine.partition import Partition

__all__ = ["Partition"]

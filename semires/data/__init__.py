"""Annotation readers, splits, and the generated data sets."""

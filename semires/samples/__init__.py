"""Samples for training and evaluation: datasets, augmentation, order, batches."""

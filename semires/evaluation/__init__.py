"""Evaluation: metrics, confidence intervals, and running a model over a split."""

from semires.evaluation.metrics import segmentation_metrics

__all__ = ["segmentation_metrics"]

"""semires: a reproducibility harness for SemiRES (ICML 2024).

Semi-supervised referring expression segmentation in which Segment Anything proposals refine a
teacher's pseudo-labels. One package a step of the story, in order: ``data``, ``proposals``,
``models``, ``refine``, ``training``, ``evaluation``, ``tuning``, ``reporting``.
"""

__version__ = "0.1.0"

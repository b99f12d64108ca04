"""semires: a reproducibility harness for SemiRES (ICML 2024).

Semi-supervised referring expression segmentation in which Segment Anything proposals refine a
teacher's pseudo-labels. One package a step of the story, in order: ``data``, ``proposals``,
``models``, ``refine``, ``evaluation``, ``training``, ``tuning``, ``reporting``. A step imports from
those before it and from the modules beside them, never from a later one (tests/test_imports.py).
"""

__version__ = "0.1.0"

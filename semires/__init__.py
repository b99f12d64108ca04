"""semires: a reproducibility harness for SemiRES (ICML 2024).

Semi-supervised referring expression segmentation in which Segment Anything proposals refine a
teacher's pseudo-labels. The packages in import order: ``refine``, ``runs``, ``config``, ``data``,
``models``, ``proposals``, ``samples``, ``evaluation``, ``training``, ``tuning``, ``reporting``,
``rehearsal``. A package imports only from earlier ones and from the modules beside them
(tests/test_imports.py).
"""

__version__ = "0.1.0"

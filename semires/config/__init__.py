"""params.yaml: typed, validated and resolved per method.

``schema`` holds the sections, ``checks`` what must agree between them, ``messages`` the wording of
faults, ``load`` reads the file, ``resolve`` applies a method's overrides, ``compose`` activates a
parameter set.
"""

from semires.config.load import load_params
from semires.config.schema import Params

__all__ = ["Params", "load_params"]

"""Load, validate and resolve params.yaml.

``schema`` defines the sections, ``checks`` validates across sections, ``validate`` formats the
errors, ``load`` reads the file, ``resolve`` applies the overrides of a method, ``grid`` lists the
runs, and ``compose`` activates a parameter file.
"""

from semires.config.load import load_params
from semires.config.schema import Params

__all__ = ["Params", "load_params"]

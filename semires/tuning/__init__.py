"""Threshold search (paper Table 3) on counts per atom, by Optuna: `study.tune` is the stage."""

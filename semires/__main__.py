"""`python -m semires`: the same as the `semires` command, in the right environment.

The stages of dvc.yaml call ``python3``, whatever that is on PATH. If it lacks the packages that
semires needs, the interpreter of the project's ``.venv`` takes over. Nothing of the package may be
imported before that, and the syntax must be that of older Pythons.
"""

from __future__ import annotations

import importlib.util
import os
import sys

NEEDED = (
    *("mlflow", "numpy", "optuna", "pandas", "pyarrow", "pydantic", "ruamel", "safetensors"),
    *("torch", "transformers"),
)


def use_environment() -> None:
    """Replace this process by the one of ``.venv`` if this Python lacks packages.

    Raises:
        SystemExit: with code 2 and one line, if there is no such environment.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    environment = os.path.join(os.environ.get("DVC_ROOT", os.curdir), ".venv")
    python = os.path.join(environment, "bin", "python")
    if os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(environment):
        os.execv(python, [python, "-m", "semires", *sys.argv[1:]])
    print(
        f"semires: {sys.executable} lacks {', '.join(missing)}; activate the environment in which "
        "semires is installed (of `make repro`: . .venv/bin/activate)",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    use_environment()
    from semires.cli import main

    sys.exit(main())

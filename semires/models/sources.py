"""Where weights and vocabularies come from: shipped files, local files and folders, hub ids."""

from __future__ import annotations

from pathlib import Path

from semires.errors import WeightsError

_PACKAGE = Path(__file__).parents[1]


def shipped(source: str | Path) -> Path:
    """``source`` as a path; the package's own ``semires/weights/...`` from any current folder."""
    path = Path(source)
    if not path.exists() and path.parts[:2] == ("semires", "weights"):
        return _PACKAGE.joinpath(*path.parts[1:])
    return path


def hub_error(source: str | Path, what: str, key: str, error: Exception) -> WeightsError:
    """One line for a hub id or a path that cannot be had: what to put where."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return WeightsError(
        f"{key}: {source} is no local file or folder and {what} cannot be had from the hub "
        f"({reason}); download it on a machine with network and set {key} to its folder"
    )

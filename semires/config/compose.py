"""`semires use FILE` makes a parameter file the active params.yaml.

A file with the key ``extends`` contains only its differences from another file in the same folder.
Mappings are merged; lists and single values are replaced.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from semires.config.grid import block_text, files_of, uses_sam, write_grid
from semires.config.load import EXTENDS, validate_file
from semires.config.schema import Params, Study
from semires.config.sources import HubSource
from semires.config.validate import parse_yaml, read_yaml
from semires.errors import ConfigError
from semires.files import write_text
from semires.runs import layout


def use(
    source: str | Path,
    target: str | Path = "params.yaml",
    part: Callable[[Params], Study] | None = None,
) -> str:
    """Validate ``source``, copy it to ``target`` and write the grid of its runs.

    The previous ``target`` is copied to ``target.before``.

    Args:
        source: the parameter file.
        target: the file to write.
        part: gives the section `study` to write in place of the one of ``source``.

    Returns:
        A report of the actions and of the files that are still missing, one line each.

    Raises:
        ConfigError: the file is missing or invalid, or ``part`` refuses it; nothing was written.
    """
    source, target = Path(source), Path(target)
    text = composed(source)
    params = validate_file(parse_yaml(text), str(source))
    if part is not None:
        text = _with_study(text, part(params))
        params = validate_file(parse_yaml(text), f"part of {source}")
    lines = [f"{'part of ' if part else ''}{source} is now {target}; `dvc repro` runs its study"]
    if target.is_file() and target.read_bytes() != text.encode():
        before = target.with_name(target.name + ".before")
        shutil.copyfile(target, before)
        lines.append(f"the previous {target} was copied to {before}")
    write_text(target, text)
    lines.append(write_grid(params, target.parent))
    return "\n".join([*lines, *(f"missing: {line}" for line in missing_files(params))])


def composed(path: Path, extending: tuple[Path, ...] = ()) -> str:
    """Return the text of a parameter file, merged with the file that it ``extends``.

    Comments are preserved.

    Args:
        path: the file.
        extending: the chain of files that extend this one.

    Raises:
        ConfigError: the file extends a missing file, or itself.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or EXTENDS not in values:
        return path.read_text(encoding="utf-8")
    editor = _with_comments()
    changes = editor.load(path.read_text(encoding="utf-8"))
    base = path.parent / str(changes.pop(EXTENDS))
    extending = (*extending, path.resolve())
    if base.resolve() in extending:
        raise ConfigError(f"{path}: extends itself")
    tree = editor.load(composed(base, extending))
    if not isinstance(tree, dict):
        raise ConfigError(f"{base}: does not contain a mapping of parameters")
    _merge(tree, changes)
    buffer = io.StringIO()
    editor.dump(tree, buffer)
    head = f"# {path.name}, composed with {base.name} by `semires use`.\n"
    return head + buffer.getvalue()


def _with_study(text: str, study: Study) -> str:
    """Return the text of a parameter file with another section `study`, one line for each block."""
    editor = _with_comments()
    tree, buffer = editor.load(text), io.StringIO()
    changes = {"reports": study.reports, "generated": editor.load(str(study.generated))}
    for name in ("runs", "tune"):
        lines = [f"- {block_text(block)}" for block in getattr(study, name)]
        changes[name] = editor.load("\n".join(lines) or "[]")
    tree["study"].update(changes)
    editor.dump(tree, buffer)
    return buffer.getvalue()


def _with_comments() -> Any:
    """A parser and writer of YAML that preserves comments."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 1000  # do not wrap lines
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _merge(tree: Any, changes: dict[str, Any]) -> None:
    """Merge ``changes`` into ``tree`` in place."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def missing_files(params: Params) -> Iterator[str]:
    """Yield a line for each missing file or folder that the parameters name, with its key."""
    if uses_sam(params):
        yield from _absent("sam.checkpoint", params.sam.checkpoint)
    for key, source in files_of(params).items():
        yield from _absent(key, source, hub=True)
    for name in params.prepared:
        place = params.datasets[name]
        if name not in params.study.generated:
            folder = Path(place.annotations)
            yield from _absent(f"datasets.{name}.root", f"{folder}/instances.json")
            yield from _absent(f"datasets.{name}.root", f"{folder}/refs({place.split_by}).p")
            yield from _absent(f"datasets.{name}.images", place.images)
        for fraction, path in place.labelled_lists.items():
            yield from _absent(f"datasets.{name}.labelled_lists.{fraction}", path)


def _absent(key: str, path: str | None, hub: bool = False) -> Iterator[str]:
    """Yield a line if the path does not exist and, with ``hub``, cannot be a hub id."""
    if path is None or Path(path).exists():
        return
    if hub and path.count("/") <= 1 and not path.endswith((".pth", ".safetensors", ".bin", ".txt")):
        return  # hub ids have the form NAME or OWNER/NAME
    yield f"{key}: {path} does not exist (docs/paper.md says where it comes from)"


def link_raw_data(params: Params, workspace: Path | None = None) -> None:
    """Link the raw data of the workspace into the current folder, a copy of the project.

    DVC runs `dvc exp run --queue` and `--temp` in a copy of the repository without ignored files.
    Each missing input becomes a symbolic link to the workspace.

    Args:
        params: all parameters.
        workspace: the real project; None is the one of a queued experiment.
    """
    workspace = (workspace or layout.root()).resolve()
    if workspace == Path.cwd().resolve():
        return
    for path in map(Path, _raw_paths(params)):
        if not path.exists() and (workspace / path).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(workspace / path)


def _raw_paths(params: Params) -> Iterator[str]:
    """Yield the user's files and folders that stages read."""
    for name in params.prepared:
        if name not in params.study.generated:
            place = params.datasets[name]
            yield from (place.annotations, place.images)
            yield from place.labelled_lists.values()
    yield params.sam.checkpoint
    yield from files_of(params).values()
    for source in params.proposals.sources.values():
        if isinstance(source, HubSource) and source.model:
            yield source.model


def untracked_inputs(params: Params) -> Iterator[str]:
    """Yield a hint for each input that `dvc exp run --queue` and `--temp` would not find."""
    inputs = [
        params.datasets[name].annotations
        for name in params.prepared
        if name not in params.study.generated
    ]
    if uses_sam(params):
        inputs.append(params.sam.checkpoint)
    for path in inputs:
        place = Path(path)
        shipped = place.is_relative_to("semires") or place.is_absolute()
        if not shipped and place.exists() and not Path(f"{path}.dvc").is_file():
            yield f"`dvc exp run --queue` and `--temp` need {path} in DVC: run `dvc add {path}`"

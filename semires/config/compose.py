"""`semires use FILE` makes a parameter file the active params.yaml.

A file whose first key is ``extends`` holds only what it changes of another one beside it.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semires.config.load import validate_file
from semires.config.schema import Params
from semires.config.validate import read_yaml
from semires.errors import ConfigError
from semires.files import write_text

EXTENDS = "extends"


def use(source: str | Path, target: str | Path = "params.yaml") -> str:
    """Validate ``source`` and make it ``target``, whose former content is kept beside it.

    Returns:
        What was done and what is still missing, one line each.

    Raises:
        ConfigError: the file is missing or wrong; ``target`` is as it was.
    """
    source, target = Path(source), Path(target)
    text = composed(source)
    params = validate_file(_parse(text), str(source))
    lines = [f"{source} is now {target}; `dvc repro` runs its study"]
    if target.is_file() and target.read_bytes() != text.encode():
        kept = target.with_name(target.name + ".before")
        shutil.copyfile(target, kept)
        lines.append(f"the former {target} is {kept}")
    write_text(target, text)
    return "\n".join([*lines, *(f"missing: {line}" for line in missing_files(params))])


def composed(path: Path, extending: tuple[Path, ...] = ()) -> str:
    """The text of a parameter file, with what it ``extends`` filled in, comments kept.

    Args:
        path: the file.
        extending: the files that led to this one.

    Raises:
        ConfigError: it extends a file that is missing, or itself.
    """
    values = read_yaml(path)
    if not isinstance(values, dict) or EXTENDS not in values:
        return path.read_text(encoding="utf-8")
    changes = _parse(path.read_text(encoding="utf-8"), comments=True)
    base = path.parent / str(changes.pop(EXTENDS))
    extending = (*extending, path.resolve())
    if base.resolve() in extending:
        raise ConfigError(f"{path}: extends itself")
    tree = _parse(composed(base, extending), comments=True)
    if not isinstance(tree, dict):
        raise ConfigError(f"{base}: holds no mapping of parameters")
    _merge(tree, changes)
    buffer = io.StringIO()
    _yaml(comments=True).dump(tree, buffer)
    head = f"# {path.name}, composed with {base.name} by `semires use`.\n"
    return head + buffer.getvalue()


def _yaml(comments: bool) -> Any:
    from ruamel.yaml import YAML

    if not comments:
        return YAML(typ="safe", pure=True)
    yaml = YAML()
    yaml.width = 1000  # no line is broken
    yaml.representer.add_representer(
        type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _parse(text: str, comments: bool = False) -> Any:
    return _yaml(comments).load(text)


def _merge(tree: Any, changes: dict[str, Any]) -> None:
    """Put ``changes`` into ``tree``; lists and single values replace, mappings are merged."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def missing_files(params: Params) -> Iterator[str]:
    """Files and folders that the parameters name and that are not there, each with its key."""
    sources = params.proposals.sources
    if any(sources[name].kind == "segment_anything" for name in params.study.sources):
        yield from _absent("sam.checkpoint", params.sam.checkpoint)
    for key, source in params.model.files().items():
        yield from _absent(key, source, hub=True)
    for name in params.study.datasets:
        place = params.datasets[name]
        if name not in params.study.generated:
            root = Path(place.root) / place.dataset
            yield from _absent(f"datasets.{name}.root", f"{root}/instances.json")
            yield from _absent(f"datasets.{name}.root", f"{root}/refs({place.split_by}).p")
            yield from _absent(f"datasets.{name}.images", place.images)
        for fraction, path in place.labelled_lists.items():
            yield from _absent(f"datasets.{name}.labelled_lists.{fraction}", path)


def _absent(key: str, path: str | None, hub: bool = False) -> Iterator[str]:
    """A line if the path is not there; a hub id has one slash at most and no suffix of weights."""
    if path is None or Path(path).exists():
        return
    if hub and path.count("/") <= 1 and not path.endswith((".pth", ".safetensors", ".bin", ".txt")):
        return
    yield f"{key}: {path} is not there (docs/paper.md says where it comes from)"

"""Convert pydantic's errors in params.yaml to one line each: the key's path and the error.

The path is spelled as in the file, without the additional steps of pydantic such as union tags.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def explain(error: Any, root: type[BaseModel]) -> str:
    """Return one line for one item of ``ValidationError.errors()`` of the model ``root``."""
    parts, annotation = follow(root, error["loc"])
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(parts[-1], fields_of(annotation))}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["loc"][-1:] == ("[key]",) and error["type"] == "string_type":
        return f'{key}: a key must be text; write "{parts[-1]}" in quotes'
    message = error["msg"].removeprefix("Value error, ")
    if error["type"].startswith("union_tag"):
        message = f"needs a `kind` of {', '.join(tags_of(annotation))}"
    given = None if error["type"] == "value_error" else error.get("input")
    shown = f", not {_shown(given)}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{shown}" if key else message


def _shown(value: Any) -> str:
    """Return the beginning of a value, or the size of a number that is too long to print."""
    try:
        return repr(value)[:80]
    except ValueError:
        return f"a number of {value.bit_length()} bits"


def follow(root: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Return the path as spelled in the file, and the type of its last key (or of the parent)."""
    annotation: Any = root
    parts: list[str] = []
    for part in location:
        annotation = unwrap(annotation)
        if part in tags_of(annotation):
            annotation = next(m for m in members(annotation) if part in tags_of(m))
            continue
        if part == "[key]":  # the error is in a dictionary's key, not in its value
            continue
        parts.append(str(part))
        if is_model(annotation):
            variants = variants_of(annotation)  # `model` has several classes
            found = (v.model_fields[str(part)] for v in variants if part in v.model_fields)
            field = next(found, None)
            if field is None:
                break
            annotation = field.annotation
        elif get_origin(annotation) in (dict, list):
            annotation = get_args(annotation)[-1]
    return parts, unwrap(annotation)


def unwrap(annotation: Any) -> Any:
    """Return a type without `Annotated` and `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        some = [a for a in get_args(annotation) if a is not type(None)]
        if len(some) == 1:
            return unwrap(some[0])
    return annotation


def is_model(annotation: Any) -> bool:
    """Return whether a type is a parameter section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def members(annotation: Any) -> list[Any]:
    """Return the sections of a union of sections; [] for another type."""
    if get_origin(annotation) in (Union, UnionType):
        return [a for a in map(unwrap, get_args(annotation)) if is_model(a)]
    return []


def tags_of(annotation: Any) -> list[str]:
    """Return the values of `kind` of a section, or of all members of a union."""
    if members(annotation):
        return [tag for member in members(annotation) for tag in tags_of(member)]
    field = annotation.model_fields.get("kind") if is_model(annotation) else None
    return [str(tag) for tag in get_args(field.annotation)] if field else []


def fields_of(annotation: Any) -> list[str]:
    """Return the field names of a section and of the sections derived from it."""
    variants = variants_of(annotation) if is_model(annotation) else []
    return list(dict.fromkeys(name for variant in variants for name in variant.model_fields))


def variants_of(section: type[BaseModel]) -> list[type[BaseModel]]:
    """Return a section and all sections derived from it."""
    return [section, *(v for child in section.__subclasses__() for v in variants_of(child))]


def require(names: Iterable[Any], known: Iterable[Any], key: str, where: str) -> None:
    """Check that all names are in ``known``.

    Raises:
        ValueError: a name is unknown; the text gives the key, the name and the nearest known name.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not a key of `{where}`{nearest(name, known)}")


def nearest(name: Any, known: Iterable[Any]) -> str:
    """Return the end of a message: the most similar known name, or else all known names."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it has {', '.join(names)}" if names else ""

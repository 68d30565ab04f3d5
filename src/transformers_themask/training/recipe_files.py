# SPDX-License-Identifier: Apache-2.0
"""Recipes as files: YAML mappings of argument names to values that may build on other recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BASE = "base"


def read_with_bases(path: Path, builds_on_it: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read a recipe and the recipes it builds on.

    `base: other.yaml`, or a list of several, names the recipes below it; their paths are relative to its folder.

    Args:
        path (`Path`): The recipe.
        builds_on_it (`tuple[Path, ...]`, *optional*): The recipes whose `base` led here, outermost first.

    Returns:
        Each file and its own fields, without `base`. Later files win over earlier ones; `path` is the last.

    Raises:
        ValueError: If a file is not a YAML mapping or the bases go in a circle.
        FileNotFoundError: If there is no such file.
    """
    if path.resolve() in [other.resolve() for other in builds_on_it]:
        circle = " -> ".join(str(other) for other in (*builds_on_it, path))
        raise ValueError(f"`{BASE}` of {builds_on_it[-1]} must not lead back to {path}. Got {circle}.")
    if not path.is_file():
        named_by = f", the `{BASE}` of {builds_on_it[-1]}," if builds_on_it else ""
        raise FileNotFoundError(f"{path}{named_by} is not a file. Give the path of a recipe.")
    fields = _read_fields(path)
    bases = fields.pop(BASE, [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ValueError(f"`{BASE}` of {path} must be the path of a recipe or a list of paths. Got {bases}.")
    files: list[tuple[Path, dict[str, Any]]] = []
    for base in bases:
        files += read_with_bases(path.parent / base, (*builds_on_it, path))
    return [*files, (path, fields)]


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another. Mappings inside both are merged likewise; else the value of `upper` wins.

    Args:
        lower (`Mapping[str, Any]`): The values below.
        upper (`Mapping[str, Any]`): The values that win.
    """
    result = dict(lower)
    for name, value in upper.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[name] = value
    return result


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML. {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        found = "an empty file" if fields is None else type(fields).__name__
        raise ValueError(f"{path} must hold `name: value` lines. Got {found}.")
    return fields

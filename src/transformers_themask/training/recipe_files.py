# SPDX-License-Identifier: Apache-2.0
"""Recipe files: YAML mappings of argument names to values, which may build on other recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers_themask.files.text_files import read_yaml

BASE = "base"


def read_with_bases(path: Path, built_on_it: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Read a recipe and those below it: each file and its own fields; later files override, `path` is the last.

    `base: other.yaml`, or a list of several, names the recipes below it, relative to its folder; `built_on_it` are
    those whose `base` led here. A circle or a file that is no YAML mapping is a `ValueError`.
    """
    if path.resolve() in [other.resolve() for other in built_on_it]:
        circle = " -> ".join(str(other) for other in (*built_on_it, path))
        raise ValueError(f"`{BASE}` of {built_on_it[-1]} must not lead back to {path}. Got {circle}.")
    if not path.is_file():
        named_by = f", the `{BASE}` of {built_on_it[-1]}," if built_on_it else ""
        raise FileNotFoundError(f"{path}{named_by} is not a file. Give the path of a recipe.")
    fields = _read_fields(path)
    bases = fields.pop(BASE, [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ValueError(f"`{BASE}` of {path} must be the path of a recipe or a list of paths. Got {bases}.")
    below = [file for base in bases for file in read_with_bases(path.parent / base, (*built_on_it, path))]
    return [*below, (path, fields)]


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings recursively; the values of `upper` win."""
    result = dict(lower)
    for name, value in upper.items():
        below = result.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merged(below, value)
        result[name] = value
    return result


def _read_fields(path: Path) -> dict[str, Any]:
    fields = read_yaml(path, object)
    if not isinstance(fields, dict):
        found = "an empty file" if fields is None else type(fields).__name__
        raise ValueError(f"{path} must hold `name: value` lines. Got {found}.")
    return fields

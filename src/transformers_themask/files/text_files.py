# SPDX-License-Identifier: Apache-2.0
"""Reading of text files: a value of the expected type, or a `ValueError` of one sentence that names the file."""

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

Value = TypeVar("Value")

# Far above any list of videos, recipe or result file.
MAX_BYTES = 64 * 2**20
# PyYAML lets the errors of its constructors through, as for `!!int ''` and `!!bool x`.
PARSER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError)
WHOLE_NUMBER = "-?[0-9]{1,9}"
KINDS: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "nothing"}


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, with or without a byte order mark.

    Raises `FileNotFoundError` if there is no regular file, and `ValueError` if it is too large or not UTF-8.
    """
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "no such file"
        raise FileNotFoundError(f"{path} must be a text file. Got {kind}.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} must be a text file of at most {MAX_BYTES} bytes. Got {path.stat().st_size}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text file in UTF-8. Got {error}.") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without surrounding spaces, up to the last one that is not empty."""
    return [line.strip() for line in read_text(path).rstrip().split("\n")]


def read_json(path: Path, kind: type[Value], rule: str = "", *, allow_constants: bool = False) -> Value:
    """Value in a JSON file that must follow a rule, such as "be a result file in JSON".

    Repeated names are rejected and, unless `allow_constants`, NaN and infinity, which Python writes but JSON has not.
    """
    load = partial(_load_json, parse_constant=None if allow_constants else _reject_constant)
    return _parsed(load, read_text(path), kind, str(path), rule, "JSON")


def parse_json(text: str, kind: type[Value], source: str, rule: str = "") -> Value:
    """[`read_json`] of a text, which errors call `source`."""
    load = partial(_load_json, parse_constant=_reject_constant)
    return _parsed(load, text, kind, source, rule, "JSON")


def read_yaml(path: Path, kind: type[Value]) -> Value:
    """Value in a YAML file. Repeated names and aliases are rejected."""
    return parse_yaml(read_text(path), kind, str(path))


def parse_yaml(text: str, kind: type[Value], source: str, rule: str = "") -> Value:
    """[`read_yaml`] of a text, which errors call `source`."""
    return _parsed(_load_yaml, text, kind, source, rule, "YAML")


def read_class_ids(path: Path, rule: str) -> dict[str, int]:
    """Id of every class in a JSON file of names and ids, whole numbers or their digits.

    Raises a `ValueError` for fractions, booleans, and names that are empty or cannot be printed.
    """
    ids: dict[str, int] = {}
    for name, value in read_json(path, dict, rule).items():
        if isinstance(value, bool) or not re.fullmatch(WHOLE_NUMBER, str(value).strip()):
            raise ValueError(f"{path} must {rule}. Got {value!r} for {name!r}.")
        if not name.strip() or not name.isprintable():
            raise ValueError(f"{path} must {rule}. Got the name {name!r}.")
        ids[name] = int(value)
    return ids


def _parsed(
    load: Callable[[str], Any], text: str, kind: type[Value], source: str, rule: str, text_format: str
) -> Value:
    try:
        value = load(text)
    except RecursionError:
        raise ValueError(f"{source} must {rule or f'be {text_format}'}. Got too many levels.") from None
    except PARSER_ERRORS as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{source} must {rule or f'be {text_format}'}. Got: {problem}.") from error
    if not isinstance(value, kind):
        found = KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{source} must {rule or f'hold {KINDS[kind]} in {text_format}'}. Got {found}.")
    return value


def _load_json(text: str, parse_constant: Callable[[str], object] | None) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=parse_constant)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _unique(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"the name {name!r} occurs twice")
        mapping[name] = value
    return mapping


class _Loader(yaml.SafeLoader):
    """Values only: an alias can contain itself or grow without bound, and of a repeated name one value gets lost."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias, which is not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        return _unique((self._key(key), self.construct_object(value, deep=deep)) for key, value in node.value)

    def _key(self, node: Any) -> Any:
        key = self.construct_object(node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.YAMLError(f"{key!r} as a name")
        return key

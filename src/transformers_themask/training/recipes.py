# SPDX-License-Identifier: Apache-2.0
"""From a recipe and command-line flags to the arguments of a run."""

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from .arguments import DataArguments, ModelArguments, VSSTrainingArguments
from .recipe_files import merged, read_with_bases
from .starting_point import check_clip_length, load_config
from .suggestions import did_you_mean

RECIPE_SUFFIXES = (".yaml", ".yml")


def parse_recipe(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, VSSTrainingArguments]:
    """Parse `[recipe.yaml] [--flag value ...]`.

    Args:
        arguments (`Sequence[str]`): The command line without the program's name.

    Raises:
        ValueError: For an unknown name or an impossible value, naming the file it is in.
        FileNotFoundError: If there is no such recipe, or no recipe of a `base`.
    """
    parser = RecipeParser(
        (ModelArguments, DataArguments, VSSTrainingArguments),
        allow_abbrev=False,  # a mistyped flag must not pass for the beginning of another
        usage="run_vss.py [RECIPE.yaml] [--flag value ...]",
        description="Train, evaluate and predict. RECIPE.yaml sets any of the arguments below, on top of the recipes "
        "that its `base` names; flags override it. The fields of --config_overrides are added to the recipe's.",
    )
    return parser.parse_recipe(arguments)


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose values come from YAML files first and from flags second.

    Problems are raised as `ValueError` with one sentence instead of ending the process with the full list of flags.
    """

    def parse_recipe(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Parse a command line that may start with the path of a recipe.

        Args:
            arguments (`Sequence[str]`): The command line without the program's name.

        Returns:
            One instance per dataclass of the parser.
        """
        flags = list(arguments)
        recipe: dict[str, Any] = {}
        source = "The command line"
        if flags and flags[0].endswith(RECIPE_SUFFIXES):
            path = Path(flags.pop(0))
            recipe = self.read_recipe(path)
            source = f"{path} with the flags given" if flags else str(path)
        self._check_flags(flags)
        # Nothing, as in `max_steps:`, is what the argument would be without the line.
        self.set_defaults(**{name: value for name, value in recipe.items() if value is not None})
        try:
            parsed = self.parse_args_into_dataclasses(flags, look_for_args_file=False)
            model_args, data_args, training_args = parsed
            # One field on the command line must not replace the recipe's whole network by the default one.
            model_args.config_overrides = merged(recipe.get("config_overrides") or {}, model_args.overrides)
            if training_args.do_train and model_args.model_name_or_path is None:  # else the checkpoint has a say
                check_clip_length(load_config(model_args, class_names=["any"]), data_args.frame_offsets)
        except ValueError as error:
            raise ValueError(f"{source}: {error}" if recipe else str(error)) from error
        return parsed

    def read_recipe(self, path: Path) -> dict[str, Any]:
        """Read a recipe and the recipes it builds on, and check every name and type.

        Args:
            path (`Path`): The recipe.

        Returns:
            The value of each argument that any of the files sets; later files win, mappings are merged.

        Raises:
            ValueError: For an unknown name or a value of the wrong type, naming the file it is in.
            FileNotFoundError: If one of the files does not exist.
        """
        recipe: dict[str, Any] = {}
        for source, fields in read_with_bases(path):
            recipe = merged(recipe, {name: self._checked(name, value, source) for name, value in fields.items()})
        return recipe

    def error(self, message: str) -> NoReturn:
        """Raise what `argparse` would print.

        Args:
            message (`str`): argparse's description of the problem.
        """
        raise ValueError(re.sub(r"^argument --(\w+)\S*: ", r"\1: ", message))

    def _check_flags(self, flags: list[str]) -> None:
        try:
            _, remaining = self.parse_known_args(flags)
        except ValueError as error:
            raise ValueError(f"The command line must give values of the right type. Got {error}.") from error
        if remaining and remaining[0].startswith("--"):
            self._require_known(remaining[0].removeprefix("--").split("=")[0], "The command line")
        if remaining:
            raise ValueError(f"The command line must be [recipe.yaml] [--flag value ...]. Got {remaining[0]!r}.")

    def _checked(self, name: str, value: Any, source: Path) -> Any:
        """The value of a recipe's line as the argument's type."""
        self._require_known(name, source)
        kinds = self._kinds[name]
        if value is None:
            return None
        if kind_of_value(value) not in kinds or (name == "config_overrides" and not isinstance(value, dict)):
            expected = "a mapping" if dict in kinds else "a list" if list in kinds else "one value"
            raise ValueError(f"`{name}` in {source} must be {expected}. Got {value!r}.")
        if isinstance(value, dict) or (isinstance(value, list) and kinds != {list}):
            return value
        # The rest is text on a command line, so argparse converts and checks it exactly as it does flags.
        flag = [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
        try:
            return getattr(self.parse_args(flag), name)
        except ValueError as error:
            raise ValueError(f"{source} must give values of the right type. Got {error}.") from error

    def _require_known(self, name: str, source: Path | str) -> None:
        if name not in self._kinds:
            remedy = did_you_mean(name, self._kinds, otherwise="See `--help` for all names.")
            raise ValueError(f"{source} must only set known arguments. Got `{name}`. {remedy}")

    @cached_property
    def _kinds(self) -> dict[str, set[type]]:
        """The kinds of value that each argument takes."""
        kinds: dict[str, set[type]] = {}
        for dataclass in self.dataclass_types:
            types = get_type_hints(dataclass)
            kinds |= {
                field.name: kinds_of_type(types[field.name]) for field in dataclasses.fields(dataclass) if field.init
            }
        return kinds


def kind_of_value(value: Any) -> type:
    """Tell mappings, lists and single values (`object`) apart.

    Args:
        value (`Any`): What YAML gave.
    """
    return type(value) if isinstance(value, dict | list) else object


def kinds_of_type(hint: Any) -> set[type]:
    """The same for the values that a type allows.

    Args:
        hint (`Any`): The annotation of a field: a type, or alternatives of which `None` does not count.
    """
    is_union = isinstance(hint, UnionType) or get_origin(hint) is Union
    types = [get_origin(kind) or kind for kind in (get_args(hint) if is_union else [hint]) if kind is not type(None)]
    return {kind if kind in (dict, list) else object for kind in types}

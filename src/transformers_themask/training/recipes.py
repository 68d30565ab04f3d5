# SPDX-License-Identifier: Apache-2.0
"""Parser of recipes and command-line flags."""

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from transformers_themask.suggestions import did_you_mean

from .arguments import DataArguments, ModelArguments, VSSTrainingArguments
from .recipe_files import merged, read_with_bases
from .starting_point import check_clip_length, load_config

RECIPE_SUFFIXES = (".yaml", ".yml")


def parse_recipe(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, VSSTrainingArguments]:
    """Parse `[recipe.yaml] [--flag value ...]`; a `ValueError` for a name or a value names the file it is in."""
    parser = RecipeParser(
        (ModelArguments, DataArguments, VSSTrainingArguments),
        allow_abbrev=False,
        usage="run_vss.py [RECIPE.yaml] [--flag value ...]",
        description="Train, evaluate and predict. RECIPE.yaml sets any of the arguments below, on top of the recipes "
        "that its `base` names; flags override it. The fields of --config_overrides are added to the recipe's.",
    )
    return parser.parse_recipe(arguments)


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` of YAML files and flags, which override them; problems are raised as `ValueError`."""

    def parse_recipe(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Parse a command line that may start with the path of a recipe, into one instance per dataclass."""
        flags = list(arguments)
        recipe: dict[str, Any] = {}
        source = "The command line"
        if flags and flags[0].endswith(RECIPE_SUFFIXES):
            path = Path(flags.pop(0))
            for file, fields in read_with_bases(path):
                recipe = merged(recipe, {name: self._checked(name, value, file) for name, value in fields.items()})
            source = f"{path} with the flags given" if flags else str(path)
        self._check_flags(flags)
        # An empty value, as in `max_steps:`, stands for the argument's default.
        self.set_defaults(**{name: value for name, value in recipe.items() if value is not None})
        try:
            parsed = self.parse_args_into_dataclasses(flags, look_for_args_file=False)
            model_args, data_args, training_args = parsed
            # A field on the command line is added to the recipe's network instead of replacing it.
            model_args.config_overrides = merged(recipe.get("config_overrides") or {}, model_args.overrides)
            if training_args.do_train and model_args.model_name_or_path is None:  # else the checkpoint decides
                check_clip_length(load_config(model_args, class_names=["any"]), data_args.frame_offsets)
        except ValueError as error:
            raise ValueError(f"{source}: {error}" if recipe else str(error)) from error
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise the message that `argparse` would print."""
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
        """A recipe's value, converted to the argument's type."""
        self._require_known(name, source)
        kinds = self._kinds[name]
        if value is None:
            return None
        kind = type(value) if isinstance(value, dict | list) else object
        if kind not in kinds or (name == "config_overrides" and not isinstance(value, dict)):
            expected = "a mapping" if dict in kinds else "a list" if list in kinds else "one value"
            raise ValueError(f"`{name}` in {source} must be {expected}. Got {value!r}.")
        if isinstance(value, dict) or value == [] or (isinstance(value, list) and kinds != {list}):
            return value
        # argparse converts and checks all other values exactly as it does flags.
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
        kinds: dict[str, set[type]] = {}
        for kind in self.dataclass_types:
            hints = get_type_hints(kind)
            kinds |= {field.name: kinds_of_type(hints[field.name]) for field in dataclasses.fields(kind) if field.init}
        return kinds


def kinds_of_type(hint: Any) -> set[type]:
    """The kinds of value that an annotation allows besides `None`: `dict`, `list`, or `object` for a single value."""
    is_union = isinstance(hint, UnionType) or get_origin(hint) is Union
    types = [get_origin(kind) or kind for kind in (get_args(hint) if is_union else [hint]) if kind is not type(None)]
    return {kind if kind in (dict, list) else object for kind in types}

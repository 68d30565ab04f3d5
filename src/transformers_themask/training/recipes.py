# SPDX-License-Identifier: Apache-2.0
"""Reading a recipe: a YAML file of argument values, overridden by command-line flags."""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from .arguments import DataArguments, ModelArguments, VSSTrainingArguments

RECIPE_SUFFIXES = (".yaml", ".yml")


def parse_recipe(arguments: Sequence[str]) -> tuple[ModelArguments, DataArguments, VSSTrainingArguments]:
    """Parse `[recipe.yaml] [--flag value ...]`.

    Args:
        arguments (`Sequence[str]`): The command line without the program's name.

    Raises:
        ValueError: For an unknown name or an impossible value.
        FileNotFoundError: If there is no such recipe.
    """
    parser = RecipeParser(
        (ModelArguments, DataArguments, VSSTrainingArguments),
        usage="run_vss.py [RECIPE.yaml] [--flag value ...]",
        description="Train, evaluate and predict. RECIPE.yaml sets any of the arguments below; flags override it. "
        "The fields of --config_overrides are added to the recipe's.",
    )
    return parser.parse_recipe(arguments)


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose values come from a YAML file first and from flags second.

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
        if flags and flags[0].endswith(RECIPE_SUFFIXES):
            recipe = self._read_recipe(Path(flags.pop(0)))
            self.set_defaults(**recipe)
        *parsed, remaining = self.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
        if remaining and remaining[0].startswith("--"):
            self._require_known(remaining[0].removeprefix("--").split("=")[0], "The command line")
        if remaining:
            raise ValueError(f"The command line must be [recipe.yaml] [--flag value ...]. Got {remaining[0]!r}.")
        model_args = parsed[0]
        # One field on the command line must not replace the recipe's whole network by the default one.
        model_args.config_overrides = {**recipe.get("config_overrides", {}), **model_args.overrides}
        return tuple(parsed)

    def error(self, message: str) -> NoReturn:
        """Raise what `argparse` would print.

        Args:
            message (`str`): argparse's description of the problem.
        """
        raise ValueError(message)

    def _read_recipe(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file. Give the path of a recipe.")
        try:
            recipe = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} must be YAML. {' '.join(str(error).split())}") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"{path} must hold `name: value` lines. Got {type(recipe).__name__}.")
        for name in recipe:
            self._require_known(name, path)
        # Scalars go in as text, so that argparse converts and checks them exactly as it does flags.
        return {name: str(value) if isinstance(value, int | float) else value for name, value in recipe.items()}

    def _require_known(self, name: str, source: Path | str) -> None:
        known = {
            field.name for dataclass in self.dataclass_types for field in dataclasses.fields(dataclass) if field.init
        }
        if name in known:
            return
        close = difflib.get_close_matches(str(name), known, n=1)
        remedy = f"Did you mean `{close[0]}`?" if close else "See `--help` for all names."
        raise ValueError(f"{source} must only set known arguments. Got `{name}`. {remedy}")

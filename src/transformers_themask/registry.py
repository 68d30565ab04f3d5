# SPDX-License-Identifier: Apache-2.0
"""Registry of model families: one row per family, found in `families/` or added by another package."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel

from transformers_themask.models.video_processing import VideoSegmentationProcessor

FAMILIES_PACKAGE = "transformers_themask.families"

# Key of `Family.starts_from` for every model type that is not listed.
ANY_OTHER = "*"

StateDict = dict[str, Tensor]


class ConfigReader(Protocol):
    """Reads a configuration off the shapes of an official state dict; keyword arguments override its fields."""

    def __call__(self, state_dict: StateDict, **overrides: object) -> PreTrainedConfig:
        """Return the configuration."""


class TinyModel(Protocol):
    """Builds a tiny random model of a family; keyword arguments override the fields of its configuration."""

    def __call__(self, **overrides: object) -> PreTrainedModel:
        """Return the model."""


class WrappedProcessor(Protocol):
    """Builds the video processor for a checkpoint of a wrapped model, at its own size or another."""

    def __call__(
        self, path: str | Path, config: PreTrainedConfig, size: Mapping[str, int] | None, **hub_options: object
    ) -> VideoSegmentationProcessor:
        """Return the video processor; `config` is that of the model that wraps, `hub_options` as `revision`."""


@dataclass(frozen=True)
class Converter:
    """Conversion of one kind of official checkpoint.

    Attributes:
        marker: Prefix of some entries, by which the checkpoint is recognised.
        config_from_state_dict: Reads the configuration off the shapes.
        convert_state_dict: Returns the entries under their names here, and the official names dropped.
    """

    marker: str
    config_from_state_dict: ConfigReader
    convert_state_dict: Callable[[StateDict], tuple[StateDict, list[str]]]


@dataclass(frozen=True)
class LoadablePart:
    """A part of a model that has a published checkpoint of its own.

    Attributes:
        prefix: Prefix of the parameters that a model's checkpoint may lack when the part is given.
        load: Fills the part of a model with the entries of its checkpoint.
    """

    prefix: str
    load: Callable[[PreTrainedModel, StateDict], None]


@dataclass(frozen=True)
class Family:
    """All that is specific to one model family, apart from its networks.

    Attributes:
        config: Configuration class; its `model_type` names the family.
        model: Model class.
        tiny: Builds a tiny random model; keyword arguments override fields of the configuration.
        processor: Video processor class.
        introduction: What the model is, a sentence for model cards.
        converters: Conversions of official checkpoints.
        parts: Parts of the model that can be loaded from checkpoints of their own.
        starts_from: Model types whose checkpoints training can start from, besides the family's own: to the field of
            the configuration that takes the saved one, or `""` for the configuration as a whole. The key `"*"` stands
            for every other type.
        undecayed_norms: Default of the training argument of that name.
        is_default: Whether this is the architecture of a new model where none is named.
        accepts: Whether the family wraps models of a type that belongs to no family, as its part `starts_from["*"]`.
        wrapped_processor: Builds the video processor for the checkpoint of a wrapped model.
    """

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    tiny: TinyModel
    processor: type[VideoSegmentationProcessor] = VideoSegmentationProcessor
    introduction: str = ""
    converters: tuple[Converter, ...] = ()
    parts: Mapping[str, LoadablePart] = field(default_factory=dict)
    starts_from: Mapping[str, str] = field(default_factory=dict)
    undecayed_norms: str = "head"
    is_default: bool = False
    accepts: Callable[[str], bool] = lambda model_type: False
    wrapped_processor: WrappedProcessor | None = None

    @property
    def name(self) -> str:
        """The model type of the family's configuration."""
        return self.config.model_type

    @property
    def is_native(self) -> bool:
        """Whether configuration and checkpoints are those of a model of Transformers, which cannot be trained here."""
        return self.config.__module__.startswith("transformers.")

    @property
    def freezable(self) -> Mapping[str, tuple[str, ...]]:
        """Parts that training can freeze: name to paths of modules."""
        return getattr(self.model, "freezable_parts", {})

    @property
    def exports(self) -> dict[str, type]:
        """The public classes that belong to this family alone, by name."""
        classes = [self.model] if self.is_native else [self.config, self.model]
        if self.processor is not VideoSegmentationProcessor:
            classes.append(self.processor)
        return {each.__name__: each for each in classes}

    def part_from(self, model_type: str) -> str | None:
        """The field of the configuration that takes a saved model's, `""` for the whole, `None` for an unfit model."""
        if model_type == self.name:
            return ""
        return self.starts_from.get(model_type, self.starts_from.get(ANY_OTHER))


_rows: dict[str, Family] = {}


def register_family(row: Family) -> None:
    """Add a model family, or replace the one of the same name, and register its classes with Transformers.

    Args:
        row ([`Family`]): The family. Its classes are used by the auto classes, the pipeline, training, the commands
            and everything else that handles models by their configuration.
    """
    _rows[row.name] = row
    if row.is_native:
        return
    AutoConfig.register(row.name, row.config, exist_ok=True)
    AutoModel.register(row.config, row.model, exist_ok=True)
    AutoVideoProcessor.register(row.config, row.processor, exist_ok=True)
    # Saved folders carry the source files of these classes, so they load where the package is not installed.
    row.config.register_for_auto_class()
    row.model.register_for_auto_class("AutoModel")
    row.processor.register_for_auto_class()


@cache
def _register_own() -> None:
    package = import_module(FAMILIES_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        register_family(import_module(f"{FAMILIES_PACKAGE}.{module.name}").FAMILY)


def families() -> list[Family]:
    """All registered families."""
    _register_own()
    return list(_rows.values())


def family_of(model: str | PreTrainedConfig) -> Family | None:
    """The family of a configuration or model type, or `None` for a model of no family."""
    _register_own()
    return _rows.get(model if isinstance(model, str) else model.model_type)


def wrapping_family(model_type: str) -> Family | None:
    """The family that wraps models of a type that belongs to no family, or `None`."""
    return next((row for row in families() if row.accepts(model_type)), None)


def trainable_families() -> list[Family]:
    """All registered families that can be trained here."""
    return [row for row in families() if not row.is_native]


def default_family() -> Family:
    """The family of a new model where none is named."""
    rows = trainable_families()
    return next((row for row in rows if row.is_default), rows[0])

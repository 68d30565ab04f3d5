# SPDX-License-Identifier: Apache-2.0
"""Conversion of official checkpoints of all families to models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.registry import Converter, Family, StateDict, families
from transformers_themask.terminal_text import naming

from .official import ConversionReport, fill_model, load_official_checkpoint, official_names


def convert_file(
    checkpoint: Path,
    class_names: Sequence[str] | None = None,
    parts: Mapping[str, Path] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> tuple[PreTrainedModel, VideoSegmentationProcessor, ConversionReport]:
    """Build the model and the video processor that an official checkpoint file belongs to.

    `parts` are files by name in [`~transformers_themask.registry.Family`], which the checkpoint may lack; `overrides`
    win over what was read off the checkpoint.
    """
    state_dict = load_official_checkpoint(checkpoint)
    with naming(checkpoint):
        row, converter = converter_for(state_dict)
        config = converter.config_from_state_dict(state_dict, **(overrides or {}))
        if class_names is not None:
            _name_classes(config, class_names)
        model, report = convert_official_checkpoint(state_dict, config)
    files = dict(parts or {})
    if unknown := sorted(files.keys() - row.parts.keys()):
        raise ValueError(
            f"`parts` must be parts with checkpoints of their own, of which {row.name} has "
            f"{', '.join(row.parts) or 'none'}. Got {unknown[0]}."
        )
    given = tuple(row.parts[name].prefix for name in files)
    missing = [name for name in report.missing if not name.startswith(given)]
    if missing:
        raise ValueError(
            f"`checkpoint` must fill every parameter of the model. Got {checkpoint} without {len(missing)} of them, "
            f"the first {missing[0]}."
        )
    for name, file in files.items():
        part = load_official_checkpoint(file)
        with naming(file):
            row.parts[name].load(model, part)
    return model, row.processor(fit=getattr(config, "fit", "stretch")), report


def _name_classes(config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    if len(class_names) != config.num_labels:
        raise ValueError(
            f"`class_names` must be those of the checkpoint's {config.num_labels} classes. Got {len(class_names)}."
        )
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: index for index, name in config.id2label.items()}


def converter_for(state_dict: StateDict) -> tuple[Family, Converter]:
    """The family of an official state dict, and its conversion; a `ValueError` if no family has such checkpoints."""
    converters = [(row, converter) for row in families() for converter in row.converters]
    for row, converter in converters:
        if any(key.startswith(converter.marker) for key in state_dict):
            return row, converter
    markers = " or ".join(f"`{converter.marker}`" for _, converter in converters)
    raise ValueError(
        f"An official state dict must have entries that start with {markers}. Got {len(state_dict)} other entries."
    )


def config_from_state_dict(state_dict: StateDict, **overrides: object) -> PreTrainedConfig:
    """Read the architecture off an official state dict; `overrides` win over what was read."""
    return converter_for(state_dict)[1].config_from_state_dict(state_dict, **overrides)


def convert_official_checkpoint(
    state_dict: StateDict, config: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, ConversionReport]:
    """Build the model, in evaluation mode, that an official state dict belongs to."""
    row, converter = converter_for(state_dict)
    model = row.model(converter.config_from_state_dict(state_dict) if config is None else config)
    converted, dropped = converter.convert_state_dict(state_dict)
    placeless, missing = fill_model(model, converted)
    unknown = official_names(placeless, state_dict, converter.convert_state_dict)
    return model.eval(), ConversionReport(dropped=sorted(dropped), unknown=unknown, missing=missing)

# SPDX-License-Identifier: Apache-2.0
"""Conversion of official checkpoints of all families to models."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from transformers_themask.registry import Converter, Family, families

from .official import ConversionReport, fill_model, official_names


def converter_for(state_dict: dict[str, Tensor]) -> tuple[Family, Converter]:
    """Find the family of an official state dict.

    Raises:
        ValueError: If no family has such checkpoints.
    """
    converters = [(row, converter) for row in families() for converter in row.converters]
    for row, converter in converters:
        if any(key.startswith(converter.marker) for key in state_dict):
            return row, converter
    markers = " or ".join(f"`{converter.marker}`" for _, converter in converters)
    raise ValueError(f"An official state dict must have entries that start with {markers}. Got none.")


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> PreTrainedConfig:
    """Read the architecture off an official state dict.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides: Fields of the configuration that win over what was read.

    Raises:
        ValueError: If the family is unknown, an entry is missing, or an override is impossible.
    """
    return converter_for(state_dict)[1].config_from_state_dict(state_dict, **overrides)


def convert_official_checkpoint(
    state_dict: dict[str, Tensor], config: PreTrainedConfig | None = None
) -> tuple[Any, ConversionReport]:
    """Build the model an official state dict belongs to.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters, as
            [`~transformers_themask.conversion.official.load_official_checkpoint`] reads them.
        config (`PreTrainedConfig`, *optional*): Architecture; by default [`config_from_state_dict`].

    Returns:
        The model in evaluation mode and a [`~transformers_themask.conversion.official.ConversionReport`].

    Raises:
        ValueError: If the family is unknown, or a parameter has another shape than the configuration asks for.
    """
    row, converter = converter_for(state_dict)
    model = row.model(converter.config_from_state_dict(state_dict) if config is None else config)
    converted, dropped = converter.convert_state_dict(state_dict)
    placeless, missing = fill_model(model, converted)
    unknown = official_names(placeless, state_dict, converter.convert_state_dict)
    return model.eval(), ConversionReport(dropped=sorted(dropped), unknown=unknown, missing=missing)

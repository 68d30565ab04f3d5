# SPDX-License-Identifier: Apache-2.0
"""Which family an official checkpoint belongs to, and the model that it becomes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_themask.models.modeling_cffm import CFFMForVideoSemanticSegmentation
from transformers_themask.models.modeling_mpvss import MPVSSForVideoSemanticSegmentation
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentation

from . import cffm, mpvss, themask
from .official import ConversionReport, fill_model, official_names


class Converter(NamedTuple):
    """How the official checkpoints of one family are read; they are known by entries that start with `marker`."""

    marker: str
    model_class: type[PreTrainedModel]
    config_from_state_dict: Callable[..., PreTrainedConfig]
    convert_state_dict: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str]]]


CONVERTERS = [
    Converter(
        "decode_head.predictor.",
        THEMaskForVideoSemanticSegmentation,
        themask.config_from_state_dict,
        themask.convert_state_dict,
    ),
    Converter(
        "decode_head.decoder_focal.",
        CFFMForVideoSemanticSegmentation,
        cffm.config_from_state_dict,
        cffm.convert_state_dict,
    ),
    Converter(
        "sem_seg_head.predictor.",
        MPVSSForVideoSemanticSegmentation,
        mpvss.config_from_state_dict,
        mpvss.convert_state_dict,
    ),
]


def converter_for(state_dict: dict[str, Tensor]) -> Converter:
    """Find the family of an official state dict.

    Raises:
        ValueError: If it is of none.
    """
    for converter in CONVERTERS:
        if any(key.startswith(converter.marker) for key in state_dict):
            return converter
    markers = " or ".join(f"`{converter.marker}`" for converter in CONVERTERS)
    raise ValueError(f"An official state dict must have entries that start with {markers}. Got none.")


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: Any) -> PreTrainedConfig:
    """Read the architecture off an official state dict.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides: Fields of the configuration that win over what was read.

    Raises:
        ValueError: If the family is unknown, an entry is missing, or an override is impossible.
    """
    return converter_for(state_dict).config_from_state_dict(state_dict, **overrides)


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
    converter = converter_for(state_dict)
    model: Any = converter.model_class(converter.config_from_state_dict(state_dict) if config is None else config)
    converted, dropped = converter.convert_state_dict(state_dict)
    placeless, missing = fill_model(model, converted)
    unknown = official_names(placeless, state_dict, converter.convert_state_dict)
    return model.eval(), ConversionReport(dropped=sorted(dropped), unknown=unknown, missing=missing)

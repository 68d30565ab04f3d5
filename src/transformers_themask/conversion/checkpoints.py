# SPDX-License-Identifier: Apache-2.0
"""Conversion of official checkpoints of all families to models."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from transformers_themask.registry import Converter, Family, LoadablePart, StateDict, families, family_of

from .official import ConversionReport, fill_model, official_names


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
    """Read the architecture off an official state dict.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides: Fields of the configuration that win over what was read.

    Raises:
        ValueError: If the family is unknown, an entry is missing, or an override is impossible.
    """
    return converter_for(state_dict)[1].config_from_state_dict(state_dict, **overrides)


def convert_official_checkpoint(
    state_dict: StateDict, config: PreTrainedConfig | None = None
) -> tuple[PreTrainedModel, ConversionReport]:
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


def convert_complete_checkpoint(
    state_dict: StateDict,
    overrides: Mapping[str, object],
    class_names: Sequence[str] | None = None,
    other_parts: Sequence[str] = (),
) -> tuple[PreTrainedModel, ConversionReport]:
    """Build a model of which an official state dict holds every parameter.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides (`Mapping[str, object]`): Fields of the configuration that win over what was read.
        class_names (`Sequence[str]`, *optional*): Names of the classes in the order of their indices.
        other_parts (`Sequence[str]`, *optional*): Parts that may be missing, because [`load_part`] fills them next.

    Returns:
        As [`convert_official_checkpoint`].

    Raises:
        ValueError: As [`convert_official_checkpoint`], and if a parameter is missing or there are other classes.
    """
    row = converter_for(state_dict)[0]
    config = config_from_state_dict(state_dict, **overrides)
    if class_names is not None:
        if len(class_names) != config.num_labels:
            raise ValueError(
                f"The data set must have the checkpoint's {config.num_labels} classes. Got {len(class_names)}."
            )
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
    model, report = convert_official_checkpoint(state_dict, config)
    prefixes = tuple(_part(row, name).prefix for name in other_parts)
    missing = [name for name in report.missing if not name.startswith(prefixes)]
    if missing:
        raise ValueError(
            "The checkpoint must fill every parameter of the model. "
            f"Got one without {len(missing)} of them, the first `{missing[0]}`."
        )
    return model, report


def load_part(model: PreTrainedModel, name: str, state_dict: StateDict) -> None:
    """Fill one of `Family.parts` of a model from the part's own checkpoint.

    Raises:
        ValueError: If the model has no such part, or the entries are not those of the part.
    """
    row = family_of(model.config)
    if row is not None:
        _part(row, name).load(model, state_dict)


def _part(row: Family, name: str) -> LoadablePart:
    if name not in row.parts:
        raise ValueError(f"`{name}` must be left out for a model of type {row.name!r}, which has no such part.")
    return row.parts[name]

# SPDX-License-Identifier: Apache-2.0
"""Configuration fields given by hand: from text to a mapping, and on top of other fields to a configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from transformers_themask.files.text_files import parse_yaml
from transformers_themask.suggestions import did_you_mean


def mapping_from_text(name: str, text: str) -> dict:
    """Read a mapping given as YAML or JSON in the flag `name`; a `ValueError` for anything else."""
    return parse_yaml(text, dict, f"`{name}`", "be a mapping such as '{num_frames: 2}'")


def build_config(
    config_class: type[PreTrainedConfig], fields: Mapping[str, Any], overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    """Build a configuration from saved fields and overrides given by hand; a `ValueError` if these are impossible."""
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(overrides.keys() - known)
    if unknown:
        remedy = did_you_mean(unknown[0], known, otherwise="Its documentation lists them.")
        raise ValueError(
            f"`config_overrides` must hold fields of {config_class.__name__}. Got {unknown[0]!r}. {remedy}"
        )
    try:
        return config_class.from_dict({**fields, **overrides})
    except StrictDataclassError as error:
        cause = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"`config_overrides` must give {config_class.__name__} fields of the right type. Got {cause}."
        ) from error

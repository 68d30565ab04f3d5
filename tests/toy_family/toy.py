# SPDX-License-Identifier: Apache-2.0
"""The family of the toy."""

from transformers_themask.models.configuration_toy import ToyConfig
from transformers_themask.models.modeling_toy import ToyForVideoSemanticSegmentation

from transformers_themask.registry import Family


def tiny(**overrides: object) -> ToyForVideoSemanticSegmentation:
    """A toy of six classes."""
    return ToyForVideoSemanticSegmentation(ToyConfig(**{"num_labels": 6, **overrides}))


FAMILY = Family(
    config=ToyConfig, model=ToyForVideoSemanticSegmentation, tiny=tiny, introduction="It looks at colours alone."
)

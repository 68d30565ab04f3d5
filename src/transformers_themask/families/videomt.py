# SPDX-License-Identifier: Apache-2.0
"""The family of Transformers' VidEoMT, whose configuration and checkpoints it shares."""

from transformers import VideomtConfig

from transformers_themask.models.modeling_videomt import VideomtForVideoSemanticSegmentation
from transformers_themask.registry import Family


def tiny(**overrides: object) -> VideomtForVideoSemanticSegmentation:
    """A VidEoMT of three narrow layers."""
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_queries": 8,
        "num_blocks": 2,
        "image_size": 64,
        "num_labels": 6,
        **overrides,
    }
    return VideomtForVideoSemanticSegmentation(VideomtConfig(**fields))


FAMILY = Family(config=VideomtConfig, model=VideomtForVideoSemanticSegmentation, tiny=tiny)

# SPDX-License-Identifier: Apache-2.0
"""The family of CFFM, and its official checkpoints (mmcv files)."""

import re
from functools import partial

from torch import Tensor

from transformers_themask.conversion.official import (
    build_official_config,
    converted_entries,
    count_in,
    mit_config_from,
    renamed,
    shape_in,
    split_key_values,
)
from transformers_themask.families import STAGES
from transformers_themask.models.configuration_cffm import CFFMConfig
from transformers_themask.models.mit import MiTConfig
from transformers_themask.models.modeling_cffm import CFFMForVideoSemanticSegmentation
from transformers_themask.registry import Converter, Family

# Unused parameters of the official model, and those that follow from the configuration.
DROPPED = (
    r"^decode_head\.conv_seg\.",
    r"\.relative_position_index",
    r"\.valid_ind_rolled$",
)

RENAMES = [
    (r"^decode_head\.linear_fuse\.conv\.", "head.fusion.convolution."),
    (r"^decode_head\.linear_fuse\.bn\.", "head.fusion.batch_norm."),
    (r"^decode_head\.linear_pred\.", "head.auxiliary_classifier."),
    (r"^decode_head\.linear_pred2\.", "head.classifier."),
    (r"^decode_head\.decoder_focal\.blocks\.", "head.layers."),
    (r"(layers\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(layers\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(layers\.\d+)\.mlp\.", r"\1."),
    (r"(layers\.\d+)\.pool_layers\.0\.", r"\1.poolings.0.projection."),
    (r"(layers\.\d+)\.attn\.relative_position_bias_table_to_neighbors$", r"\1.attention.neighbour_bias"),
    (r"(layers\.\d+)\.attn\.relative_position_bias_table$", r"\1.attention.position_biases.0"),
    (r"(layers\.\d+)\.attn\.relative_position_bias_table_to_windows\.0$", r"\1.attention.position_biases.1"),
    (r"(layers\.\d+)\.attn\.", r"\1.attention."),
]


def convert_official_key(key: str) -> str | None:
    """The name here of an official parameter, or `None` if it is dropped; see [`official.renamed`]."""
    name = renamed(key, DROPPED, "backbone", RENAMES)
    if name is None:
        return None
    if match := re.match(r"decode_head\.linear_c(\d)\.proj\.(\w+)$", name):
        return f"head.fusion.projections.{int(match[1]) - 1}.{match[2]}"
    # The target frame comes first.
    if match := re.match(r"(head\.layers\.\d+)\.pool_layers_clips\.(\d+)\.(\w+)$", name):
        return f"{match[1]}.poolings.{int(match[2]) + 1}.projection.{match[3]}"
    if match := re.match(r"(.*)\.relative_position_bias_table_to_windows_clips\.(\d+)$", name):
        return f"{match[1]}.position_biases.{int(match[2]) + 2}"
    return name


def _reshaped(key: str, tensor: Tensor) -> dict[str, Tensor]:
    if key.endswith(".neighbour_bias"):
        return {key: tensor.squeeze(0)}
    if key.endswith(".position_biases.0"):
        return {key: tensor.T.contiguous()}  # heads last in the official table of the window itself
    return split_key_values(key, tensor)


convert_state_dict = partial(converted_entries, rename=convert_official_key, reshape=_reshaped)


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> CFFMConfig:
    """Read the architecture off an official state dict's shapes; head counts and windows are those released."""
    shape = partial(shape_in, state_dict)
    num_labels, hidden_dim = shape("decode_head.linear_pred.weight")[:2]
    fields = {
        "backbone_config": mit_config_from(state_dict),
        "mining_layers": count_in(state_dict, r"decode_head\.decoder_focal\.blocks\.(\d+)\."),
        "num_labels": num_labels,
        "hidden_dim": hidden_dim,
        "mlp_ratio": shape("decode_head.decoder_focal.blocks.0.mlp.fc1.weight")[0] // hidden_dim,
    }
    return build_official_config(CFFMConfig, fields, overrides)


def tiny(**overrides: object) -> CFFMForVideoSemanticSegmentation:
    """A CFFM with two mining layers on a tiny MiT."""
    fields = {
        "hidden_dim": 16,
        "num_attention_heads": 4,
        "mining_layers": 2,
        "num_labels": 6,
        "backbone_config": MiTConfig(**STAGES),
        **overrides,
    }
    return CFFMForVideoSemanticSegmentation(CFFMConfig(**fields))


FAMILY = Family(
    config=CFFMConfig,
    model=CFFMForVideoSemanticSegmentation,
    tiny=tiny,
    introduction="CFFM mines the features of a frame from a few earlier ones, seen the coarser the further away they "
    "are (Sun et al., CVPR 2022).",
    converters=(Converter("decode_head.decoder_focal.", config_from_state_dict, convert_state_dict),),
    undecayed_norms="backbone",
)

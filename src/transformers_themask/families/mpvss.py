# SPDX-License-Identifier: Apache-2.0
"""The family of MPVSS, its official checkpoints (detectron2 files), and those of FlowNetS (mmtrack files)."""

import re
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig, SwinConfig

from transformers_themask.conversion import query_segmenter
from transformers_themask.conversion.official import build_official_config, converted_entries, count_in, shape_in
from transformers_themask.families import QUERY_SEGMENTER, STAGES
from transformers_themask.models.configuration_mpvss import MPVSSConfig
from transformers_themask.models.configuration_query_segmenter import QuerySegmenterConfig
from transformers_themask.models.mit import MiTConfig
from transformers_themask.models.modeling_mpvss import MPVSSForVideoSemanticSegmentation
from transformers_themask.registry import ANY_OTHER, Converter, Family, LoadablePart

# Indices of a Swin, which follow from its windows, and the weights of the official loss.
DROPPED = r"relative_position_index$|^criterion\.empty_weight$"

# The motion encoder of FlowNetS, without the decoder whose place the flow of MPVSS takes.
FLOWNETS_ENCODER = r"^(?:encoder\.)?(conv\d\.\d\.conv\.\w+)$"

SWIN_RENAMES: list[tuple[str, Any]] = [
    (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "swin.embeddings.norm"),
    (r"^norm(\d)\.", lambda match: f"hidden_states_norms.stage{int(match[1]) + 1}."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.qkv\.", ".attention.qkv_proj."),  # split in three by `convert_state_dict`
    (r"\.attn\.proj\.", ".attention.o_proj."),
]

RESNET_RENAMES: list[tuple[str, Any]] = [
    (r"^stem\.conv1\.norm", "embedder.embedder.normalization"),
    (r"^stem\.conv1", "embedder.embedder.convolution"),
    (r"^res(\d)\.(\d+)\.", lambda match: f"encoder.stages.{int(match[1]) - 2}.layers.{match[2]}."),
    (r"\.conv(\d)\.", lambda match: f".layer.{int(match[1]) - 1}."),
    (r"(layer\.\d|shortcut)\.norm\.", r"\1.normalization."),
    (r"(layer\.\d|shortcut)\.(weight|bias)$", r"\1.convolution.\2"),
]

FLOW_RENAMES = [
    (r"^motion\.", ""),
    (r"^decoder\.deconv(\d)\.conv\.", r"pixel_decoder.map_enlargers.\1."),
    (r"^decoder\.upsample_flow(\d)\.conv\.", r"pixel_decoder.flow_enlargers.\1."),
    (r"^decoder\.predict_flow(\d?)\.conv\.", r"pixel_decoder.flow_predictors.\1."),
    (r"^decoder\.input_proj\.", "query_motion.input_projections."),
    (r"^decoder\.query_embed\.", "query_motion.queries_embedder."),
    (r"^decoder\.decoder_norm\.", "query_head.layernorm."),
    (r"^decoder\.output_head\.layers\.(\d)\.", r"query_head.flow_embedder.\1.0."),
    (r"^decoder\.scale_layer\.layers\.(\d)\.", r"query_head.motion_map.\1.0."),
    (r"^decoder\.fuse_layer\.conv\.", "fusion."),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.self_attn\.in_proj_", r"query_motion.layers.\1.qkv."),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.self_attn\.out_proj", r"query_motion.layers.\1.proj"),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.norm", r"query_motion.layers.\1.attention_norm"),
    (r"^decoder\.transformer_ffn_layers\.(\d+)\.linear(\d)", r"query_motion.layers.\1.fc\2"),
    (r"^decoder\.transformer_ffn_layers\.(\d+)\.norm", r"query_motion.layers.\1.final_norm"),
    (r"^decoder\.level_embed", "query_motion.level_embed"),
]

# The official decoder counts the levels from the coarsest, 6, down; the enlargers by what they make.
FIRST_PREDICTOR, FIRST_ENLARGER = 6, 5


def convert_flow_key(key: str) -> str:
    """The name in a [`FlowEstimator`] of an official parameter such as `"motion.encoder.conv3.1.conv.weight"`."""
    for pattern, replacement in FLOW_RENAMES:
        key = re.sub(pattern, replacement, key)
    if match := re.match(r"encoder\.conv(\d)\.(\d)\.conv\.(\w+)$", key):
        # An activation follows each convolution.
        return f"encoder.levels.{int(match[1]) - 1}.{2 * int(match[2])}.{match[3]}"
    if match := re.match(r"pixel_decoder\.(map|flow)_enlargers\.(\d)\.(\w+)$", key):
        return f"pixel_decoder.{match[1]}_enlargers.{FIRST_ENLARGER - int(match[2])}.{match[3]}"
    if match := re.match(r"pixel_decoder\.flow_predictors\.(\d?)\.(\w+)$", key):
        level = FIRST_PREDICTOR - int(match[1] or 2)
        return f"pixel_decoder.flow_predictors.{level}.{match[2]}"
    return key


def convert_backbone_key(key: str) -> str:
    """The name in Transformers' ResNet or Swin of an official parameter, given without `"backbone."`.

    A fused projection of queries, keys and values keeps one name, ending in `qkv_proj`.
    """
    renames = RESNET_RENAMES if re.match(r"stem\.|res\d\.", key) else SWIN_RENAMES
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def convert_official_key(key: str) -> str | None:
    """The name here of an official parameter, or `None` if it is dropped; fused projections keep one name."""
    if re.search(DROPPED, key):
        return None
    if key.startswith("motion."):
        return f"flow.{convert_flow_key(key)}"
    if key.startswith("backbone."):
        return f"segmenter.model.pixel_level_module.encoder.{convert_backbone_key(key.removeprefix('backbone.'))}"
    # Its segmenter is a Mask2Former.
    converted = query_segmenter.convert_official_key(key.replace("sem_seg_head.", "decode_head.", 1))
    return None if converted is None else f"segmenter.{converted}"


def _reshaped(key: str, tensor: Tensor) -> dict[str, Tensor]:
    if ".hidden_states_norms.stage4." in key:
        # Transformers' Swin also has the norm that follows its last stage outside of a backbone.
        return {key: tensor, key.replace("hidden_states_norms.stage4", "swin.layernorm"): tensor}
    if ".qkv_proj." not in key:
        return query_segmenter.split_projections(key, tensor)
    return {key.replace("qkv_proj", f"{name}_proj"): x for name, x in zip("qkv", tensor.chunk(3), strict=True)}


convert_state_dict = partial(converted_entries, rename=convert_official_key, reshape=_reshaped)


def load_motion_encoder(model: MPVSSForVideoSemanticSegmentation, state_dict: dict[str, Tensor]) -> None:
    """Fill a model's motion encoder with that of mmtrack's FlowNetS, which the paper begins with."""
    flow = getattr(model, "flow", None)
    if flow is None:
        raise ValueError(f"`model` must be an MPVSS with a flow to take a motion encoder. Got {type(model).__name__}.")
    found = {match[1]: tensor for key, tensor in state_dict.items() if (match := re.match(FLOWNETS_ENCODER, key))}
    converted = {convert_flow_key(f"encoder.{key}").removeprefix("encoder."): found[key] for key in found}
    wanted = {key: tensor.shape for key, tensor in flow.encoder.state_dict().items()}
    if {key: tensor.shape for key, tensor in converted.items()} != wanted:
        raise ValueError(
            f"`state_dict` must hold the encoder of FlowNetS with channels {tuple(model.config.motion_channels)}. "
            f"Got {len(converted)} of its {len(wanted)} entries, or other shapes."
        )
    flow.encoder.load_state_dict(converted)


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: Any) -> MPVSSConfig:
    """Read the architecture off an official state dict's shapes, with the official 8 heads of the decoders.

    A checkpoint without a flow, a Mask2Former, leaves that part at its defaults.
    """
    head = {
        key.replace("sem_seg_head.", "decode_head.", 1): tensor
        for key, tensor in state_dict.items()
        if not key.startswith(("backbone.", "motion."))
    }
    segmenter = query_segmenter.head_fields(head) | {
        "backbone_config": _backbone_config(state_dict),
        "matching_rounds": 1,
    }
    given = overrides.pop("segmenter_config", None) or {}
    fields: dict[str, object] = {
        "segmenter_config": build_official_config(QuerySegmenterConfig, segmenter, dict(given))
    }
    if any(key.startswith("motion.") for key in state_dict):
        shape, count = partial(shape_in, state_dict), partial(count_in, state_dict)
        fields |= {
            "motion_channels": [shape(f"motion.encoder.conv{level}.0.conv.weight")[0] for level in range(1, 7)],
            "motion_decoder_channels": [shape(f"motion.decoder.deconv{i}.conv.weight")[1] for i in (5, 4, 3, 2)],
            "motion_layers": count(r"motion\.decoder\.transformer_ffn_layers\.(\d+)\."),
            "motion_feedforward_dim": shape("motion.decoder.transformer_ffn_layers.0.linear1.weight")[0],
        }
    return build_official_config(MPVSSConfig, fields, overrides)


def _backbone_config(state_dict: dict[str, Tensor]) -> PreTrainedConfig:
    shape, count = partial(shape_in, state_dict), partial(count_in, state_dict)
    stages = [f"stage{stage}" for stage in range(1, 5)]
    if "backbone.stem.conv1.weight" in state_dict:
        return ResNetConfig(
            embedding_size=shape("backbone.stem.conv1.weight")[0],
            hidden_sizes=[shape(f"backbone.res{stage}.0.conv3.weight")[0] for stage in range(2, 6)],
            depths=[count(rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)],
            out_features=stages,
        )
    tables = [f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(4)]
    return SwinConfig(
        embed_dim=shape("backbone.patch_embed.proj.weight")[0],
        depths=[count(rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)],
        num_heads=[shape(table)[1] for table in tables],
        # A window's places are up to `window_size - 1` apart either way.
        window_size=(round(shape(tables[0])[0] ** 0.5) + 1) // 2,
        out_features=stages,
    )


def tiny(**overrides: object) -> MPVSSForVideoSemanticSegmentation:
    """An MPVSS with eight queries and a narrow motion encoder on a tiny MiT."""
    fields = {
        "segmenter_config": QuerySegmenterConfig(**QUERY_SEGMENTER, backbone_config=MiTConfig(**STAGES)),
        "motion_channels": (8, 8, 8, 16, 16, 16),
        "motion_decoder_channels": (8, 8, 8, 8),
        "motion_layers": 3,
        "motion_attention_heads": 2,
        "motion_feedforward_dim": 16,
        **overrides,
    }
    return MPVSSForVideoSemanticSegmentation(MPVSSConfig(**fields))


FAMILY = Family(
    config=MPVSSConfig,
    model=MPVSSForVideoSemanticSegmentation,
    tiny=tiny,
    introduction="MPVSS segments key frames, and carries their masks to the frames between, each by a flow of its own "
    "(Weng et al., NeurIPS 2023).",
    converters=(Converter("sem_seg_head.predictor.", config_from_state_dict, convert_state_dict),),
    parts={"motion_encoder": LoadablePart("flow.", load_motion_encoder)},
    starts_from={ANY_OTHER: "segmenter_config"},
    undecayed_norms="all",
)

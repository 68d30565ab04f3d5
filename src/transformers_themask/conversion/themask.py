# SPDX-License-Identifier: Apache-2.0
"""Official THE-Mask checkpoints (mmcv files) to this package's.

Official names that mislead, once and for all: `tgt_box` and `*_box` are frame queries, not boxes;
`deformabel_transformer_cross_attention_layers` is one module, neither deformable nor a list of layers.
"""

import re
from functools import partial

from torch import Tensor

from transformers_themask.models.configuration_themask import THEMaskConfig

from .official import (
    build_official_config,
    converted_entries,
    count_in,
    mit_config_from,
    renamed,
    shape_in,
    split_key_values,
)

# Parameters the official model carries but never uses, or that follow from the configuration.
DROPPED = (
    r"decode_head\.conv_seg\.",
    r"decode_head\.criterion\.empty_weight$",
    r"\.reference_points\.",
)

PIXEL_DECODER = r"model.pixel_level_module.decoder"
TRANSFORMER = r"model.transformer_module"
DECODER = rf"{TRANSFORMER}.decoder"
AGGREGATOR = rf"{DECODER}.temporal_aggregator"


RENAMES: list[tuple[str, str]] = [
    # Pixel decoder.
    (r"^decode_head\.pixel_decoder\.input_proj", rf"{PIXEL_DECODER}.input_projections"),
    (r"^decode_head\.pixel_decoder\.transformer\.level_embed", rf"{PIXEL_DECODER}.level_embed"),
    (r"^decode_head\.pixel_decoder\.transformer\.encoder\.layers", rf"{PIXEL_DECODER}.encoder.layers"),
    (r"(encoder\.layers\.\d+)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(encoder\.layers\.\d+)\.norm2", r"\1.final_layer_norm"),
    (r"(encoder\.layers\.\d+)\.linear(\d)", r"\1.fc\2"),
    (r"^decode_head\.pixel_decoder\.(adapter_1|layer_1)\.norm", rf"{PIXEL_DECODER}.\1.1"),
    (r"^decode_head\.pixel_decoder\.(adapter_1|layer_1)\.weight", rf"{PIXEL_DECODER}.\1.0.weight"),
    (r"^decode_head\.pixel_decoder\.mask_features", rf"{PIXEL_DECODER}.mask_projection"),
    # Transformer decoder.
    (r"^decode_head\.predictor\.", rf"{TRANSFORMER}."),
    (r"query_feat\.", r"queries_features."),
    (r"query_embed\.", r"queries_embedder."),
    (r"input_proj\.(\d)", r"input_projections.\1"),
    (r"transformer_self_attention_layers\.(\d+)\.self_attn", r"decoder.layers.\1.self_attn"),
    (r"transformer_self_attention_layers\.(\d+)\.norm", r"decoder.layers.\1.self_attn_layer_norm"),
    (r"transformer_cross_attention_layers\.(\d+)\.multihead_attn", r"decoder.layers.\1.cross_attn"),
    (r"transformer_cross_attention_layers\.(\d+)\.norm", r"decoder.layers.\1.cross_attn_layer_norm"),
    (r"transformer_ffn_layers\.(\d+)\.linear(\d)", r"decoder.layers.\1.fc\2"),
    (r"transformer_ffn_layers\.(\d+)\.norm", r"decoder.layers.\1.final_layer_norm"),
    (rf"^{TRANSFORMER}\.decoder_norm2", rf"{DECODER}.frame_layernorm"),
    (rf"^{TRANSFORMER}\.decoder_norm1?", rf"{DECODER}.layernorm"),
    (rf"^{TRANSFORMER}\.class_embed_aux", r"frame_class_predictor"),
    (rf"^{TRANSFORMER}\.class_embed", r"class_predictor"),
    (rf"^{TRANSFORMER}\.mask_embed_aux\.layers\.(\d)", rf"{DECODER}.frame_mask_predictor.mask_embedder.\1.0"),
    (rf"^{TRANSFORMER}\.mask_embed\.layers\.(\d)", rf"{DECODER}.mask_predictor.mask_embedder.\1.0"),
    # Temporal aggregation.
    (rf"^{TRANSFORMER}\.deformabel_transformer_cross_attention_layers", AGGREGATOR),
    (r"temporal_aggregator\.self_attn_box\.", r"temporal_aggregator.frame_self_attn."),
    (r"temporal_aggregator\.self_attn\.", r"temporal_aggregator.video_self_attn."),
    (r"temporal_aggregator\.cross_attn\.", r"temporal_aggregator.frame_cross_attn."),
    (r"temporal_aggregator\.norm1_box", r"temporal_aggregator.frame_cross_attn_layer_norm"),
    (r"temporal_aggregator\.norm2_box", r"temporal_aggregator.frame_self_attn_layer_norm"),
    (r"temporal_aggregator\.norm3_box", r"temporal_aggregator.frame_final_layer_norm"),
    (r"temporal_aggregator\.norm1", r"temporal_aggregator.video_aggregation_layer_norm"),
    (r"temporal_aggregator\.norm2", r"temporal_aggregator.video_self_attn_layer_norm"),
    (r"temporal_aggregator\.norm3", r"temporal_aggregator.video_final_layer_norm"),
    (r"temporal_aggregator\.linear(\d)_box", r"temporal_aggregator.frame_fc\1"),
    (r"temporal_aggregator\.linear(\d)", r"temporal_aggregator.video_fc\1"),
    (r"temporal_aggregator\.time_attention_weights", r"temporal_aggregator.temporal_weights"),
    (r"temporal_aggregator\.time_attention", r"temporal_aggregator.temporal_projection"),
]


def convert_official_key(key: str) -> str | None:
    """Rename one official parameter.

    Args:
        key (`str`): Official name, such as `"decode_head.predictor.query_feat.weight"`.

    Returns:
        The name here, or `None` for a parameter that is dropped. A fused key-value projection keeps one name, ending
        in `kv_proj`, and a fused self-attention projection its official ending; `convert_state_dict` splits both.
    """
    return renamed(key, DROPPED, "model.pixel_level_module.encoder", RENAMES)


def convert_state_dict(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and split official parameters.

    Returns:
        The state dict under the names of [`THEMaskForVideoSemanticSegmentation`], and the official names dropped.
    """
    return converted_entries(state_dict, convert_official_key, split_projections)


def split_projections(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A renamed parameter; a fused projection of self-attention or of the MiT becomes several."""
    if match := re.search(r"layers\.\d+\.self_attn\.in_proj_(weight|bias)$", key):
        stem = key.removesuffix(f"in_proj_{match[1]}")
        return {f"{stem}{name}_proj.{match[1]}": x for name, x in zip("qkv", tensor.chunk(3), strict=True)}
    return split_key_values(key, tensor)


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> THEMaskConfig:
    """Read the architecture off an official state dict's shapes.

    Head counts leave no trace in the shapes; the official ones are assumed: MiT (1, 2, 5, 8), decoders 8.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides: Fields of [`THEMaskConfig`] that win over what was read.

    Raises:
        ValueError: If an entry that tells the architecture is missing, or an override is impossible.
    """
    fields = {"backbone_config": mit_config_from(state_dict), **head_fields(state_dict)}
    return build_official_config(THEMaskConfig, fields, overrides)


def head_fields(state_dict: dict[str, Tensor]) -> dict[str, object]:
    """Read the fields of [`THEMaskConfig`] that describe everything but the backbone off a state dict's shapes.

    Raises:
        ValueError: If an entry that tells them is missing.
    """
    shape = partial(shape_in, state_dict)
    count = partial(count_in, state_dict)
    head = "decode_head."
    num_queries, hidden_dim = shape(f"{head}predictor.query_feat.weight")
    has_frame_queries = f"{head}predictor.class_embed_aux.weight" in state_dict
    return {
        "num_frames": 2 if has_frame_queries else 1,
        "num_labels": shape(f"{head}predictor.class_embed.weight")[0] - 1,
        "num_queries": num_queries,
        "hidden_dim": hidden_dim,
        "feature_size": shape(f"{head}pixel_decoder.layer_1.weight")[0],
        "mask_feature_size": shape(f"{head}pixel_decoder.mask_features.weight")[0],
        "encoder_layers": count(rf"{head}pixel_decoder\.transformer\.encoder\.layers\.(\d+)\."),
        "encoder_feedforward_dim": shape(f"{head}pixel_decoder.transformer.encoder.layers.0.linear1.weight")[0],
        "decoder_layers": 1 + count(rf"{head}predictor\.transformer_ffn_layers\.(\d+)\."),
        "dim_feedforward": shape(f"{head}predictor.transformer_ffn_layers.0.linear1.weight")[0],
    }

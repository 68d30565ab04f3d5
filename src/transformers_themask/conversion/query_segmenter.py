# SPDX-License-Identifier: Apache-2.0
"""Official names of a Mask2Former's decoders, as in the checkpoints of all models that are built around one."""

import re
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from .official import count_in, renamed, shape_in, split_key_values

# Parameters the official model carries but never uses, or that follow from the configuration.
DROPPED = (
    r"decode_head\.conv_seg\.",
    r"decode_head\.criterion\.empty_weight$",
    r"\.reference_points\.",
)

PIXEL_DECODER = "model.pixel_level_module.decoder"
TRANSFORMER = "model.transformer_module"
DECODER = f"{TRANSFORMER}.decoder"

RENAMES = [
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
    (rf"^{TRANSFORMER}\.decoder_norm1?\.", rf"{DECODER}.layernorm."),
    (rf"^{TRANSFORMER}\.class_embed\.", r"class_predictor."),
    (rf"^{TRANSFORMER}\.mask_embed\.layers\.(\d)", rf"{DECODER}.mask_predictor.mask_embedder.\1.0"),
]


def convert_official_key(key: str, more_renames: Sequence[tuple[str, str]] = ()) -> str | None:
    """The name here of an official parameter, or `None` if it is dropped; `more_renames` are of a model's own parts.

    Fused projections keep one name, which [`split_projections`] splits.
    """
    return renamed(key, DROPPED, "model.pixel_level_module.encoder", [*RENAMES, *more_renames])


def split_projections(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """The entries of a renamed parameter: several for a fused projection of self-attention or of the MiT."""
    if match := re.search(r"layers\.\d+\.self_attn\.in_proj_(weight|bias)$", key):
        stem = key.removesuffix(f"in_proj_{match[1]}")
        return {f"{stem}{name}_proj.{match[1]}": x for name, x in zip("qkv", tensor.chunk(3), strict=True)}
    return split_key_values(key, tensor)


def head_fields(state_dict: dict[str, Tensor]) -> dict[str, object]:
    """Read the configuration of everything but the backbone off the shapes of a state dict."""
    shape = partial(shape_in, state_dict)
    count = partial(count_in, state_dict)
    head = "decode_head."
    num_queries, hidden_dim = shape(f"{head}predictor.query_feat.weight")
    return {
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

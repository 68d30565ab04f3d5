# SPDX-License-Identifier: Apache-2.0
"""Official MPVSS checkpoints (detectron2 files), and those of FlowNetS, to this package's flow."""

import re

FLOW_RENAMES = [
    (r"^motion\.", ""),
    (r"^decoder\.deconv(\d)\.conv\.", r"pixel_decoder.map_enlargers.\1."),
    (r"^decoder\.upsample_flow(\d)\.conv\.", r"pixel_decoder.flow_enlargers.\1."),
    (r"^decoder\.predict_flow(\d?)\.conv\.", r"pixel_decoder.flow_predictors.\1."),
    (r"^decoder\.input_proj\.", "input_projections."),
    (r"^decoder\.query_embed\.", "queries_embedder."),
    (r"^decoder\.decoder_norm\.", "layernorm."),
    (r"^decoder\.output_head\.layers\.(\d)\.", r"flow_embedder.\1.0."),
    (r"^decoder\.scale_layer\.layers\.(\d)\.", r"motion_map.\1.0."),
    (r"^decoder\.fuse_layer\.conv\.", "fusion."),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.self_attn\.in_proj_", r"layers.\1.qkv."),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.self_attn\.out_proj", r"layers.\1.proj"),
    (r"^decoder\.transformer_self_attention_layers\.(\d+)\.norm", r"layers.\1.attention_norm"),
    (r"^decoder\.transformer_ffn_layers\.(\d+)\.linear(\d)", r"layers.\1.fc\2"),
    (r"^decoder\.transformer_ffn_layers\.(\d+)\.norm", r"layers.\1.final_norm"),
    (r"^decoder\.level_embed", "level_embed"),
]

# The official decoder counts the levels from the coarsest, 6, down; the enlargers by what they make.
FIRST_PREDICTOR, FIRST_ENLARGER = 6, 5


def convert_flow_key(key: str) -> str:
    """Rename one official parameter of the flow to its name in a [`FlowEstimator`].

    Args:
        key (`str`): Official name, such as `"motion.encoder.conv3.1.conv.weight"`.
    """
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

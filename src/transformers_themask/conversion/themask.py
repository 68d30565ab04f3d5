# SPDX-License-Identifier: Apache-2.0
"""Official THE-Mask checkpoints (mmcv files) to this package's.

Official names that mislead, once and for all: `tgt_box` and `*_box` are frame queries, not boxes;
`deformabel_transformer_cross_attention_layers` is one module, neither deformable nor a list of layers.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from transformers_themask.models.configuration_themask import THEMaskConfig
from transformers_themask.models.mit import MiTConfig
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.training.config_overrides import build_config

# Parameters the official model carries but never uses, or that follow from the configuration.
DROPPED = (
    r"decode_head\.conv_seg\.",
    r"decode_head\.criterion\.empty_weight$",
    r"\.reference_points\.",
    r"backbone\.head\.",
)

ENCODER = r"model.pixel_level_module.encoder.segformer.stages"
PIXEL_DECODER = r"model.pixel_level_module.decoder"
TRANSFORMER = r"model.transformer_module"
DECODER = rf"{TRANSFORMER}.decoder"
AGGREGATOR = rf"{DECODER}.temporal_aggregator"

OVERRIDES_REMEDY = "Give fields that leave no trace in the shapes, such as head counts, with `--config-overrides`."


def _stage(match: re.Match) -> str:
    return f"{ENCODER}.{int(match['stage']) - 1}"


RENAMES: list[tuple[str, object]] = [
    # MiT: stages count from 1 in the official names.
    (r"^backbone\.patch_embed(?P<stage>\d)\.proj", lambda m: f"{_stage(m)}.patch_embeddings.proj"),
    (r"^backbone\.patch_embed(?P<stage>\d)\.norm", lambda m: f"{_stage(m)}.patch_embeddings.layer_norm"),
    (r"^backbone\.norm(?P<stage>\d)", lambda m: f"{_stage(m)}.layer_norm"),
    (r"^backbone\.block(?P<stage>\d)\.", lambda m: f"{_stage(m)}.blocks."),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"(blocks\.\d+)\.attn\.q\.", r"\1.attention.q_proj."),
    (r"(blocks\.\d+)\.attn\.kv\.", r"\1.attention.kv_proj."),  # split in two by `convert_state_dict`
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"(blocks\.\d+)\.attn\.sr\.", r"\1.attention.sequence_reduction.sequence_reduction."),
    (r"(blocks\.\d+)\.attn\.norm\.", r"\1.attention.sequence_reduction.layer_norm."),
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


@dataclass(frozen=True)
class ConversionReport:
    """What happened to an official checkpoint's entries.

    Attributes:
        dropped (`list[str]`): Official names of parameters that serve no purpose here.
        unknown (`list[str]`): Official names this converter does not know.
        missing (`list[str]`): Parameters of the model the checkpoint does not fill.
    """

    dropped: list[str]
    unknown: list[str]
    missing: list[str]


def convert_official_key(key: str) -> str | None:
    """Rename one official parameter.

    Args:
        key (`str`): Official name, such as `"decode_head.predictor.query_feat.weight"`.

    Returns:
        The name here, or `None` for a parameter that is dropped. A fused key-value projection keeps one name, ending
        in `kv_proj`, and a fused self-attention projection its official ending; `convert_state_dict` splits both.
    """
    if any(re.search(pattern, key) for pattern in DROPPED):
        return None
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)  # type: ignore[call-overload]
    return key


def convert_state_dict(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and split official parameters.

    Returns:
        The state dict under the names of [`THEMaskForVideoSemanticSegmentation`], and the official names dropped.
    """
    converted: dict[str, Tensor] = {}
    dropped = []
    for official_key, tensor in state_dict.items():
        key = convert_official_key(official_key)
        if key is None:
            dropped.append(official_key)
        elif ".kv_proj." in key:
            halves = tensor.chunk(2)
            converted |= {key.replace("kv_proj", f"{name}_proj"): x for name, x in zip("kv", halves, strict=True)}
        elif match := re.search(r"layers\.\d+\.self_attn\.in_proj_(weight|bias)$", key):
            stem = key.removesuffix(f"in_proj_{match[1]}")
            converted |= {f"{stem}{name}_proj.{match[1]}": x for name, x in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            converted[key] = tensor
    return converted, dropped


def load_official_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the parameters of an official checkpoint file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an mmcv checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a checkpoint file. Got {path}, which does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"`path` must be a PyTorch checkpoint of plain tensors. Got {path}.") from error
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not any(str(key).startswith("decode_head.") for key in state_dict):
        raise ValueError(
            f"`path` must hold an official THE-Mask state dict. Got {path} without `decode_head.` entries."
        )
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()):
        raise ValueError(f"`path` must hold a state dict of names and tensors. Got {path} with other entries.")
    return state_dict


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> THEMaskConfig:
    """Read the architecture off an official state dict's shapes.

    Head counts leave no trace in the shapes; the official ones are assumed: MiT (1, 2, 5, 8), decoders 8.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters.
        overrides: Fields of [`THEMaskConfig`] that win over what was read.

    Raises:
        ValueError: If an entry that tells the architecture is missing, or an override is impossible.
    """

    def count(pattern: str) -> int:
        return 1 + max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=-1)

    def shape(key: str) -> torch.Size:
        if key not in state_dict:
            raise ValueError(f"An official state dict must hold `{key}`. Got {len(state_dict)} entries without it.")
        return state_dict[key].shape

    head = "decode_head."
    num_queries, hidden_dim = shape(f"{head}predictor.query_feat.weight")
    has_frame_queries = f"{head}predictor.class_embed_aux.weight" in state_dict
    fields: dict[str, object] = {
        "backbone_config": MiTConfig(
            hidden_sizes=[shape(f"backbone.norm{stage}.weight")[0] for stage in range(1, 5)],
            depths=[count(rf"backbone\.block{stage}\.(\d+)\.") for stage in range(1, 5)],
        ),
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
    try:
        return build_config(THEMaskConfig, fields, overrides)
    except ValueError as error:
        raise ValueError(f"{error} {OVERRIDES_REMEDY}") from error


def convert_official_checkpoint(
    state_dict: dict[str, Tensor], config: THEMaskConfig | None = None
) -> tuple[THEMaskForVideoSemanticSegmentation, ConversionReport]:
    """Build the model an official state dict belongs to.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Official parameters, as [`load_official_checkpoint`] reads them.
        config ([`THEMaskConfig`], *optional*): Architecture; by default [`config_from_state_dict`].

    Returns:
        The model in evaluation mode and a [`ConversionReport`].

    Raises:
        ValueError: If a parameter has another shape than the configuration asks for.
    """
    model = THEMaskForVideoSemanticSegmentation(config_from_state_dict(state_dict) if config is None else config)
    converted, dropped = convert_state_dict(state_dict)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for key in converted.keys() & shapes.keys():
        if converted[key].shape != shapes[key]:
            raise ValueError(
                f"`config` must be that of the checkpoint. Got shape {tuple(shapes[key])} for `{key}`, which has "
                f"{tuple(converted[key].shape)} in the checkpoint. {OVERRIDES_REMEDY}"
            )
    known = set(shapes)
    missing, unexpected = model.load_state_dict(
        {key: tensor for key, tensor in converted.items() if key in known}, strict=False
    )
    assert not unexpected
    return model.eval(), ConversionReport(
        dropped=sorted(dropped), unknown=sorted(set(converted) - known), missing=sorted(missing)
    )

# SPDX-License-Identifier: Apache-2.0
"""The family of THE-Mask, and its official checkpoints (mmcv files).

Misleading official names: `tgt_box` and `*_box` are frame queries, not boxes;
`deformabel_transformer_cross_attention_layers` is one module, neither deformable nor a list of layers.
"""

from torch import Tensor

from transformers_themask.conversion import query_segmenter
from transformers_themask.conversion.official import build_official_config, converted_entries, mit_config_from
from transformers_themask.conversion.query_segmenter import DECODER, TRANSFORMER
from transformers_themask.models.configuration_themask import THEMaskConfig
from transformers_themask.models.mit import MiTConfig
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentation
from transformers_themask.models.video_processing_themask import THEMaskVideoProcessor
from transformers_themask.registry import Converter, Family

AGGREGATOR = f"{DECODER}.temporal_aggregator"

# Parts besides the Mask2Former: the predictors of frame queries, and the temporal aggregation.
RENAMES = [
    (rf"^{TRANSFORMER}\.decoder_norm2", rf"{DECODER}.frame_layernorm"),
    (rf"^{TRANSFORMER}\.class_embed_aux", r"frame_class_predictor"),
    (rf"^{TRANSFORMER}\.mask_embed_aux\.layers\.(\d)", rf"{DECODER}.frame_mask_predictor.mask_embedder.\1.0"),
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
    """Rename one official parameter as [`query_segmenter.convert_official_key`] does, or `None` to drop it."""
    return query_segmenter.convert_official_key(key, RENAMES)


def convert_state_dict(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and split official parameters; returns the new entries, and the official names dropped."""
    return converted_entries(state_dict, convert_official_key, query_segmenter.split_projections)


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> THEMaskConfig:
    """Read the architecture off an official state dict's shapes.

    Head counts leave no trace in the shapes; the official ones are assumed: MiT (1, 2, 5, 8), decoders 8.

    Raises `ValueError` if an entry that shows the architecture is missing, or an override is impossible.
    """
    has_frame_queries = "decode_head.predictor.class_embed_aux.weight" in state_dict
    fields = {
        "num_frames": 2 if has_frame_queries else 1,
        "backbone_config": mit_config_from(state_dict),
        **query_segmenter.head_fields(state_dict),
    }
    return build_official_config(THEMaskConfig, fields, overrides)


def tiny(**overrides: object) -> THEMaskForVideoSemanticSegmentation:
    """A THE-Mask with eight queries on a tiny MiT."""
    fields = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 48,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 4,
        "dim_feedforward": 48,
        "num_queries": 8,
        "train_num_points": 32,
        "num_labels": 6,
        "backbone_config": MiTConfig(
            hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4)
        ),
        **overrides,
    }
    return THEMaskForVideoSemanticSegmentation(THEMaskConfig(**fields))


FAMILY = Family(
    config=THEMaskConfig,
    model=THEMaskForVideoSemanticSegmentation,
    processor=THEMaskVideoProcessor,
    tiny=tiny,
    introduction="THE-Mask is a Mask2Former for video whose matching gives each object a second query and whose "
    "decoder aggregates queries over time (An et al., BMVC 2023).",
    converters=(Converter("decode_head.predictor.", config_from_state_dict, convert_state_dict),),
    starts_from={"mask2former": ""},
    is_default=True,
)

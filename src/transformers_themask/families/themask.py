# SPDX-License-Identifier: Apache-2.0
"""The family of THE-Mask, and its official checkpoints (mmcv files).

Misleading official names: `tgt_box` and `*_box` are frame queries, not boxes;
`deformabel_transformer_cross_attention_layers` is one module, neither deformable nor a list of layers.
"""

from functools import partial

from torch import Tensor

from transformers_themask.conversion import query_segmenter
from transformers_themask.conversion.official import build_official_config, converted_entries, mit_config_from
from transformers_themask.conversion.query_segmenter import DECODER, TRANSFORMER
from transformers_themask.families import QUERY_SEGMENTER, STAGES
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


convert_official_key = partial(query_segmenter.convert_official_key, more_renames=RENAMES)
convert_state_dict = partial(converted_entries, rename=convert_official_key, reshape=query_segmenter.split_projections)


def config_from_state_dict(state_dict: dict[str, Tensor], **overrides: object) -> THEMaskConfig:
    """Read the architecture off an official state dict's shapes, with the official head counts of the decoders, 8."""
    has_frame_queries = "decode_head.predictor.class_embed_aux.weight" in state_dict
    fields = {
        "num_frames": 2 if has_frame_queries else 1,
        "backbone_config": mit_config_from(state_dict),
        **query_segmenter.head_fields(state_dict),
    }
    return build_official_config(THEMaskConfig, fields, overrides)


def tiny(**overrides: object) -> THEMaskForVideoSemanticSegmentation:
    """A THE-Mask with eight queries on a tiny MiT."""
    fields = {**QUERY_SEGMENTER, "backbone_config": MiTConfig(**STAGES), **overrides}
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

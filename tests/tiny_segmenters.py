# SPDX-License-Identifier: Apache-2.0
"""The smallest image segmentation models of Transformers that have every part."""

import torch
from transformers import (
    BeitConfig,
    ConvNextConfig,
    DetrConfig,
    DPTConfig,
    EomtConfig,
    Mask2FormerConfig,
    MaskFormerConfig,
    PreTrainedConfig,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
)

from transformers_themask import PerFrameConfig, PerFrameForVideoSemanticSegmentation

SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4, "drop_path_rate": 0.0}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer() -> PreTrainedConfig:
    return SegformerConfig(
        hidden_sizes=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )


def upernet() -> PreTrainedConfig:
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES, drop_path_rate=0.0
    )
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_in_channels": 16, "auxiliary_channels": 8}
    return UperNetConfig(backbone_config=backbone, **sizes)


def dpt() -> PreTrainedConfig:
    return DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        hidden_dropout_prob=0.0,
        semantic_classifier_dropout=0.0,
    )


def beit() -> PreTrainedConfig:
    return BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        out_indices=[1, 2, 3, 4],
        drop_path_rate=0.0,
        use_auxiliary_head=True,
        auxiliary_channels=8,
    )


def mask2former() -> PreTrainedConfig:
    return Mask2FormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=STAGES),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=32,
        num_queries=8,
        train_num_points=64,
        dropout=0.0,
    )


def maskformer() -> PreTrainedConfig:
    return MaskFormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=STAGES),
        decoder_config=DetrConfig(
            d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32, num_queries=8, dropout=0.0
        ),
        fpn_feature_size=32,
        mask_feature_size=32,
        use_auxiliary_loss=True,
    )


def eomt() -> PreTrainedConfig:
    return EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        num_blocks=2,
        num_queries=8,
        train_num_points=64,
    )


SEMANTIC = {"segformer": segformer, "upernet": upernet, "dpt": dpt, "beit": beit}
WITH_QUERIES = {"mask2former": mask2former, "maskformer": maskformer, "eomt": eomt}
SEGMENTERS = {**SEMANTIC, **WITH_QUERIES}


def per_frame_model(name: str, seed: int = 0, num_labels: int = 6) -> PerFrameForVideoSemanticSegmentation:
    torch.manual_seed(seed)
    config = PerFrameConfig(segmenter_config=SEGMENTERS[name](), num_labels=num_labels)
    return PerFrameForVideoSemanticSegmentation(config).eval()

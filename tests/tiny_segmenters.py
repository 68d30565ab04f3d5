# SPDX-License-Identifier: Apache-2.0
"""The smallest image segmentation models of Transformers that have every part."""

from pathlib import Path

import torch
import transformers
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    BeitConfig,
    CLIPTokenizer,
    ConvNextConfig,
    DetrConfig,
    DPTConfig,
    EomtConfig,
    EomtDinov3Config,
    Mask2FormerConfig,
    MaskFormerConfig,
    MobileViTConfig,
    OneFormerConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SwinConfig,
    UperNetConfig,
    VideomtConfig,
    VideomtForUniversalSegmentation,
    VideomtVideoProcessor,
)

from transformers_themask import PerFrameConfig, PerFrameForVideoSemanticSegmentation

SWIN = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4, "drop_path_rate": 0.0}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# What Mask2Former and OneFormer have in common.
DEFORMABLE = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "num_attention_heads": 4,
    "dim_feedforward": 32,
    "train_num_points": 64,
    "dropout": 0.0,
}


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
        num_queries=8,
        **DEFORMABLE,
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


def oneformer() -> PreTrainedConfig:
    return OneFormerConfig(
        backbone_config=SwinConfig(**SWIN, out_features=STAGES),
        conv_dim=32,
        mask_dim=32,
        query_dec_layers=1,
        num_queries=9,
        task_seq_len=24,
        text_encoder_width=64,
        text_encoder_num_layers=1,
        text_encoder_context_length=24,
        text_encoder_vocab_size=20,
        text_encoder_n_ctx=2,
        **DEFORMABLE,
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
WITH_QUERIES = {"mask2former": mask2former, "maskformer": maskformer, "oneformer": oneformer, "eomt": eomt}
SEGMENTERS = {**SEMANTIC, **WITH_QUERIES}
TASK_INPUTS = {"oneformer": [20, *range(1, 19), 0, 0, 0, 0, 0]}


def per_frame_model(name: str, seed: int = 0, num_labels: int = 6) -> PerFrameForVideoSemanticSegmentation:
    torch.manual_seed(seed)
    config = PerFrameConfig(
        segmenter_config=SEGMENTERS[name](), num_labels=num_labels, task_inputs=TASK_INPUTS.get(name)
    )
    return PerFrameForVideoSemanticSegmentation(config).eval()


# ---- checkpoints as Transformers writes them ----


def eomt_dinov3() -> PreTrainedConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    return EomtDinov3Config(**sizes, image_size=64, num_blocks=2, num_queries=8)


def mobilevit() -> PreTrainedConfig:
    return MobileViTConfig(
        hidden_sizes=[8, 8, 8], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_attention_heads=2, aspp_out_channels=8
    )


NATIVE = {**SEGMENTERS, "eomt_dinov3": eomt_dinov3, "mobilevit": mobilevit}
IMAGE_PROCESSORS = {
    "segformer": "SegformerImageProcessor",
    "upernet": "SegformerImageProcessor",
    "dpt": "DPTImageProcessor",
    "beit": "BeitImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "mask2former": "Mask2FormerImageProcessor",
    "maskformer": "MaskFormerImageProcessor",
    "oneformer": "OneFormerImageProcessor",
    "eomt": "EomtImageProcessor",
    "eomt_dinov3": "EomtImageProcessor",
}


def save_native(name: str, folder: Path, num_labels: int = 6, seed: int = 0, **processor_options) -> PreTrainedModel:
    """Save an image model of Transformers with its image processor, and return it. Its weights have opinions."""
    config = NATIVE[name]()
    config.num_labels = num_labels
    is_semantic = name not in WITH_QUERIES and name != "eomt_dinov3"
    auto_class = AutoModelForSemanticSegmentation if is_semantic else AutoModelForUniversalSegmentation
    torch.manual_seed(seed)
    model = opinionated(auto_class.from_config(config), seed)
    model.save_pretrained(folder)
    getattr(transformers, IMAGE_PROCESSORS[name])(**processor_options).save_pretrained(folder)
    if name == "oneformer":
        save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer that spells what OneFormer is told."""
    letters = sorted(set("thetaskissemantic"))
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[]).save_pretrained(folder)


def videomt() -> PreTrainedConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_queries": 8, "num_blocks": 2}
    return VideomtConfig(**sizes, image_size=64, num_labels=6)


def save_videomt(folder: Path, seed: int = 0) -> PreTrainedModel:
    """Save Transformers' VidEoMT with its video processor, and return it."""
    torch.manual_seed(seed)
    model = opinionated(VideomtForUniversalSegmentation(videomt()), seed)
    model.save_pretrained(folder)
    VideomtVideoProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return model


@torch.no_grad()
def opinionated(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw weights so large that pixels, queries and frames differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "relative_position" not in name:
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / fan_in**0.5)
    return model.eval()

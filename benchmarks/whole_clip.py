# SPDX-License-Identifier: Apache-2.0
"""Rows 4, 5 and 13: whole clips, beside the official style, peers and float32."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    VideomtConfig,
    VideomtForUniversalSegmentation,
)

from transformers_themask import THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.data.synthetic import render_synthetic_video
from transformers_themask.inference.loading import load_model
from transformers_themask.models.backbones import four_feature_maps

from .decoder import NUM_FRAMES, TOLERANCE, ClipPrediction, OfficialDecoder, clip_difference, clip_prediction
from .measuring import Bound, Case, Setting, faster
from .models import config_fields, random_frames, themask, transformers_pixel_decoder

QUICK_SWIN = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
# Of VidEoMT-S; its class takes square frames only. 640 x 640 are as many pixels as 480 x 864.
VIDEOMT_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_queries": 100}
QUICK_VIDEOMT = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "num_queries": 20}


class OfficialClip(nn.Module):
    """Backbone, Transformers' pixel decoder and the official decoder on all frames of a clip at once."""

    def __init__(self, model: THEMaskForVideoSemanticSegmentation):
        super().__init__()
        self.encoder = model.model.pixel_level_module.encoder
        self.pixel_decoder = transformers_pixel_decoder(model)
        self.decoder = OfficialDecoder(model)

    def forward(self, frames: Tensor) -> ClipPrediction:
        """The prediction for one clip `(num_frames, 3, height, width)`."""
        decoded = self.pixel_decoder(four_feature_maps(self.encoder, frames))
        return self.decoder(list(decoded.multi_scale_features), decoded.mask_features)[-1]


def our_clip(model: THEMaskForVideoSemanticSegmentation, frames: Tensor) -> ClipPrediction:
    """Our prediction for one clip `(num_frames, 3, height, width)`."""
    return clip_prediction(model(pixel_values_videos=frames[None]))


def official_and_ours(setting: Setting) -> tuple[OfficialClip, THEMaskForVideoSemanticSegmentation, Tensor]:
    """Both ways with the same weights, and a clip of four frames for them."""
    model = themask(setting, NUM_FRAMES)
    return OfficialClip(model).eval().requires_grad_(False), model, random_frames(setting, NUM_FRAMES)


def clip_cases(setting: Setting) -> Iterator[Case]:
    """Row 4: THE-Mask as released, and ours, on a clip of four frames."""
    official, model, frames = official_and_ours(setting)
    with torch.no_grad():
        found = {"difference": clip_difference(official(frames), our_clip(model, frames))}
    bounds = (faster(1.6, 2.2), Bound("flops", 0.9), Bound("memory", 0.45), Bound("difference", TOLERANCE))
    yield Case("", partial(official, frames), partial(our_clip, model, frames), bounds, found)


def peer_cases(setting: Setting) -> Iterator[Case]:
    """Row 5: other models of Transformers, and ours, on a clip of four frames; weights are random."""
    ours = partial(our_clip, themask(setting, NUM_FRAMES), frames := random_frames(setting, NUM_FRAMES))
    yield Case("Mask2Former Swin-T", partial(mask2former_swin(setting), frames), ours, (faster(1.6, 2),))
    side, fields = (96, QUICK_VIDEOMT) if setting.quick else (640, VIDEOMT_SMALL)
    videomt = VideomtForUniversalSegmentation(VideomtConfig(image_size=side, **fields))
    squares = torch.randn(1, NUM_FRAMES, 3, side, side, device=setting.device)
    videomt = videomt.to(setting.device).eval().requires_grad_(False)
    yield Case("VidEoMT-S", lambda: videomt(pixel_values_videos=squares), ours, (faster(None, 1 / 1.5),))


def mask2former_swin(setting: Setting) -> Mask2FormerForUniversalSegmentation:
    """Transformers' Mask2Former with a Swin-T, or a tiny one."""
    swin = QUICK_SWIN if setting.quick else {"depths": (2, 2, 6, 2)}
    config = Mask2FormerConfig(backbone_config=SwinConfig(**swin, out_features=STAGES), **config_fields(setting))
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(config).to(setting.device).eval().requires_grad_(False)


def precision_cases(setting: Setting) -> Iterator[Case]:
    """Row 13: float32 and bfloat16 autocast on a clip of synthetic video, also of a trained model if named."""
    random_bounds = (faster(1.3, 1.5),)
    random_model = (themask(setting, NUM_FRAMES), THEMaskVideoProcessor())
    yield precision_case("random weights", setting, *random_model, "agreement_untrained", random_bounds)
    if setting.model is not None:
        trained, processor = load_model(setting.model, setting.device)
        bounds = (*random_bounds, Bound("agreement", 0.995, at_least=True))
        yield precision_case("trained", setting, trained.requires_grad_(False), processor, "agreement", bounds)


def precision_case(
    name: str, setting: Setting, model: Any, processor: Any, agreement_name: str, bounds: tuple[Bound, ...]
) -> Case:
    """Compare the precisions of one model; the agreement of random weights has a name of its own."""
    pictures, _ = render_synthetic_video(0, NUM_FRAMES, setting.size, num_classes=8)
    inputs = processor([list(pictures)], do_resize=False, return_tensors="pt")
    in_float32 = partial(model, pixel_values_videos=inputs["pixel_values_videos"].to(setting.device))

    def in_bfloat16() -> Any:
        with torch.autocast(setting.device, torch.bfloat16):
            return in_float32()

    with torch.no_grad():
        (expected,), (labels,) = (
            processor.post_process_semantic_segmentation(run(), target_sizes=[setting.size])
            for run in (in_float32, in_bfloat16)
        )
    agreement = (labels == expected).double().mean().item()
    return Case(name, in_float32, in_bfloat16, bounds, {agreement_name: agreement}, dtype=torch.bfloat16)

# SPDX-License-Identifier: Apache-2.0
"""Models with random weights and inputs for several benchmarks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from transformers_themask import MiTConfig, THEMaskConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.families import STAGES

from .measuring import Setting

NUM_LABELS = 124
# Of quick runs: small, with every part.
QUICK_FIELDS: dict[str, Any] = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 2,
    "num_attention_heads": 4,
    "dim_feedforward": 64,
    "num_queries": 20,
    "train_num_points": 256,
}
TARGETS_PER_IMAGE = 8


def config_fields(setting: Setting) -> dict[str, Any]:
    """Fields of a configuration, small for quick runs."""
    return {"num_labels": NUM_LABELS, **(QUICK_FIELDS if setting.quick else {})}


def themask_config(setting: Setting, num_frames: int) -> THEMaskConfig:
    """THE-Mask with MiT-B1, tiny for quick runs."""
    backbone = MiTConfig(**STAGES) if setting.quick else MiTConfig.from_size("mit-b1")
    return THEMaskConfig(backbone_config=backbone, num_frames=num_frames, **config_fields(setting))


def themask(setting: Setting, num_frames: int) -> THEMaskForVideoSemanticSegmentation:
    """The model of a fixed seed, in eval mode and without gradients."""
    torch.manual_seed(0)
    model = THEMaskForVideoSemanticSegmentation(themask_config(setting, num_frames))
    return model.to(setting.device).eval().requires_grad_(False)


def random_frames(setting: Setting, *shape: int) -> Tensor:
    """Noise of shape `(*shape, 3, height, width)`."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, 3, *setting.size, generator=generator).to(setting.device)


def level_shapes(setting: Setting) -> list[tuple[int, int]]:
    """Height and width of the maps at strides 32, 16 and 8."""
    height, width = setting.size
    return [(height // stride, width // stride) for stride in (32, 16, 8)]


def random_features(setting: Setting, config: THEMaskConfig, num_frames: int) -> tuple[list[Tensor], Tensor]:
    """Normally distributed outputs of the pixel decoder."""
    generator = torch.Generator().manual_seed(2)
    quarter = (setting.size[0] // 4, setting.size[1] // 4)

    def maps(channels: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(num_frames, channels, *size, generator=generator).to(setting.device)

    feature_maps = [maps(config.feature_size, size) for size in level_shapes(setting)]
    return feature_maps, maps(config.mask_feature_size, quarter)


def blocky_labels(
    setting: Setting, batch_size: int, size: tuple[int, int], num_classes: int = TARGETS_PER_IMAGE
) -> Tensor:
    """Label maps `(batch, 1, height, width)` of squares of 32 pixels."""
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(0, num_classes, (batch_size, 1, size[0] // 32, size[1] // 32), generator=generator)
    return cells.repeat_interleave(32, -2).repeat_interleave(32, -1).to(setting.device)


def on_meta(make: Callable[[], Any]) -> Any:
    """A new model without content, for exact counts."""
    with torch.device("meta"):
        model = make()
    # `torch.Tensor(...)` makes parameters on the CPU all the same.
    return model.eval().requires_grad_(False).to("meta")


def transformers_pixel_decoder(model: THEMaskForVideoSemanticSegmentation) -> Mask2FormerPixelDecoder:
    """Transformers' pixel decoder with the weights of our model."""
    ours = model.model.pixel_level_module
    theirs = Mask2FormerPixelDecoder(model.config, list(ours.encoder.channels))
    theirs.load_state_dict(ours.decoder.state_dict(), assign=True)
    return theirs.eval().requires_grad_(False)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference of two tensors of the same shape."""
    assert one.shape == other.shape
    return (one - other).abs().max().item()

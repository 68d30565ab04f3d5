# SPDX-License-Identifier: Apache-2.0
"""Rows 1 and 2: deformable attention, and the pixel decoder around it."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from transformers_themask.models.deformable_attention import deformable_attention

from .measuring import Bound, Case, Setting, faster
from .models import largest_difference, level_shapes, themask, themask_config, transformers_pixel_decoder

NUM_POINTS = 4


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Row 1: the function alone, on one frame."""
    arguments = attention_inputs(setting)
    found = {"difference": difference_of_attentions(arguments)}
    bounds = (Bound("memory", 0.35, 0.26), Bound("difference", 1e-5))
    yield Case(
        "eager",
        lambda: multi_scale_deformable_attention(*arguments),
        lambda: deformable_attention(*arguments),
        (faster(3, 4.5), *bounds),
        found,
    )
    if not setting.quick:
        # Transformers' stays eager: compiled, it takes four times as long on the CPU.
        compiled = torch.compile(deformable_attention)
        yield Case(
            "compiled",
            lambda: multi_scale_deformable_attention(*arguments),
            lambda: compiled(*arguments),
            (faster(8, 14), *bounds),
            found,
            measures=("memory", "time"),
        )


def attention_inputs(setting: Setting) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Values, shapes, sampling locations some cells around each place (some outside), and weights."""
    generator = torch.Generator().manual_seed(0)
    config = themask_config(setting, 1)
    shapes, heads = level_shapes(setting), config.num_attention_heads
    cells = sum(height * width for height, width in shapes)
    values = torch.randn(1, cells, heads, config.feature_size // heads, generator=generator)
    places = torch.rand(1, cells, 1, 1, 1, 2, generator=generator)
    steps = torch.randn(1, cells, heads, len(shapes), NUM_POINTS, 2, generator=generator)
    extents = torch.tensor([(width, height) for height, width in shapes])
    weights = torch.randn(1, cells, heads, len(shapes) * NUM_POINTS, generator=generator).softmax(-1)
    locations = places + 2 * steps / extents[:, None]
    return (
        values.to(setting.device),
        shapes,
        locations.to(setting.device),
        weights.unflatten(-1, (len(shapes), NUM_POINTS)).to(setting.device),
    )


def difference_of_attentions(arguments: tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]) -> float:
    """How far the two forms differ at most."""
    with torch.no_grad():
        return largest_difference(deformable_attention(*arguments), multi_scale_deformable_attention(*arguments))


def pixel_decoder_cases(setting: Setting) -> Iterator[Case]:
    """Row 2: the whole pixel decoder, on one frame."""
    model = themask(setting, 1)
    theirs, ours = transformers_pixel_decoder(model), model.model.pixel_level_module.decoder
    features = backbone_features(setting)
    with torch.no_grad():
        expected, (_, mask_features) = theirs(features), ours(features)
    found = {"difference": largest_difference(mask_features, expected.mask_features)}
    bounds = (Bound("memory", 0.45), Bound("difference", 1e-5))
    yield Case("eager", lambda: theirs(features), lambda: ours(features), (faster(1.6, 1.9), *bounds), found)
    if not setting.quick:
        compiled = torch.compile(ours)
        yield Case(
            "compiled",
            lambda: theirs(features),
            lambda: compiled(features),
            (faster(1.9, 2.3), *bounds),
            found,
            measures=("memory", "time"),
        )


def backbone_features(setting: Setting) -> list[Tensor]:
    """Feature maps of one frame at strides 4, 8, 16 and 32."""
    generator = torch.Generator().manual_seed(0)
    channels = themask_config(setting, 1).backbone_config.hidden_sizes
    height, width = setting.size
    return [
        torch.randn(1, depth, height // stride, width // stride, generator=generator).to(setting.device)
        for depth, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]

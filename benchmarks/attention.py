# SPDX-License-Identifier: Apache-2.0
"""Rows 1 and 2: deformable attention, and the pixel decoder around it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from transformers_themask.models.deformable_attention import deformable_attention

from .measuring import Bound, Case, Setting, faster
from .models import largest_difference, level_shapes, themask, themask_config, transformers_pixel_decoder

NUM_POINTS = 4


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Row 1: the function alone, on one frame."""
    inputs = attention_inputs(setting)
    with torch.no_grad():
        found = largest_difference(deformable_attention(*inputs), multi_scale_deformable_attention(*inputs))
    ways = (multi_scale_deformable_attention, deformable_attention)
    bounds = (Bound("memory", 0.35, 0.26), Bound("difference", 1e-5))
    yield from eager_and_compiled(setting, *ways, inputs, (faster(3, 4.5), faster(8, 14)), bounds, found)


def pixel_decoder_cases(setting: Setting) -> Iterator[Case]:
    """Row 2: the whole pixel decoder, on one frame."""
    model = themask(setting, 1)
    theirs, ours = transformers_pixel_decoder(model), model.model.pixel_level_module.decoder
    features = backbone_features(setting)
    with torch.no_grad():
        found = largest_difference(ours(features)[1], theirs(features).mask_features)
    bounds = (Bound("memory", 0.45), Bound("difference", 1e-5))
    yield from eager_and_compiled(
        setting, theirs, ours, (features,), (faster(1.6, 1.9), faster(1.9, 2.3)), bounds, found
    )


def eager_and_compiled(
    setting: Setting,
    theirs: Callable[..., Any],
    ours: Callable[..., Any],
    inputs: tuple[Any, ...],
    speed_ups: tuple[Bound, Bound],
    bounds: tuple[Bound, ...],
    difference: float,
) -> Iterator[Case]:
    """Ours eager and compiled; Transformers' stays eager: compiled, it takes four times as long on the CPU."""
    baseline, found = partial(theirs, *inputs), {"difference": difference}
    yield Case("eager", baseline, partial(ours, *inputs), (speed_ups[0], *bounds), found)
    if not setting.quick:
        compiled = partial(torch.compile(ours), *inputs)
        yield Case("compiled", baseline, compiled, (speed_ups[1], *bounds), found, measures=("memory", "time"))


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
    weights = weights.unflatten(-1, (len(shapes), NUM_POINTS)).to(setting.device)
    locations = (places + 2 * steps / extents[:, None]).to(setting.device)
    return values.to(setting.device), shapes, locations, weights


def backbone_features(setting: Setting) -> list[Tensor]:
    """Feature maps of one frame at strides 4, 8, 16 and 32."""
    generator = torch.Generator().manual_seed(0)
    channels = themask_config(setting, 1).backbone_config.hidden_sizes
    height, width = setting.size
    return [
        torch.randn(1, depth, height // stride, width // stride, generator=generator).to(setting.device)
        for depth, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Rows 8 to 11: prediction heads, matching and loss, the mask loss of the second round, and the frozen stage."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from transformers_themask import THEMaskConfig, THEMaskForVideoSemanticSegmentation
from transformers_themask.models import query_loss
from transformers_themask.models.label_counts import clip_targets
from transformers_themask.models.masked_attention import MaskPredictor, QueryPrediction
from transformers_themask.models.matching import Assignment, LevelPrediction, MaskLevel, masks_of_rows, match_rows
from transformers_themask.models.modeling_themask import loss_settings
from transformers_themask.models.point_sampling import uniform_points
from transformers_themask.models.query_loss import HierarchicalLoss
from transformers_themask.models.step_context import StepContext

from .measuring import Bound, Case, Setting, faster, saved_bytes
from .models import TARGETS_PER_IMAGE, blocky_labels, config_fields, random_frames, themask, themask_config

BATCH_SIZES = (2, 8)
NUMBERS_OF_TARGETS = (4, 8)
CROP, QUICK_CROP = (480, 480), (96, 96)
NUM_IMAGES = 2
CLIP_LENGTH = 2


def crop_size(setting: Setting) -> tuple[int, int]:
    """Height and width of training crops."""
    return QUICK_CROP if setting.quick else CROP


def step(loss: Callable[[], Tensor]) -> None:
    """A loss with its backward pass."""
    loss().backward()


# ---- rows 8 and 9 ---------------------------------------------------------------------------------------------------


class FixedPixelLevel(nn.Module):
    """Replaces backbone and pixel decoder: always returns the same mask features."""

    def __init__(self, mask_features: Tensor):
        super().__init__()
        self.mask_features = mask_features

    def forward(self, pixel_values: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `PixelLevelModule`."""
        return [], self.mask_features


class FixedDecoder(nn.Module):
    """Replaces the decoder: always returns the same queries of every layer, with their mask embeddings."""

    def __init__(self, mask_predictor: MaskPredictor, queries: Tensor):
        super().__init__()
        self.mask_predictor = mask_predictor
        self.queries = queries

    def forward(
        self, feature_maps: list[Tensor], mask_features: Tensor, num_frames: int, all_predictions: bool
    ) -> tuple[list[QueryPrediction], list[QueryPrediction]]:
        """As `THEMaskTransformerModule`."""
        maps = mask_features[:, None]
        return [QueryPrediction(layer, self.mask_predictor(layer)[:, None], maps) for layer in self.queries], []


class HeadsAndLoss:
    """Prediction heads, matching and loss of all layers, by Transformers and by us, on the same query states."""

    def __init__(self, setting: Setting, batch_size: int, num_targets: int = TARGETS_PER_IMAGE):
        model = self.model = themask(setting, num_frames=1).train()
        config, size = model.config, crop_size(setting)
        generator = torch.Generator().manual_seed(0)
        shapes = (
            (config.decoder_layers, batch_size, config.num_queries, config.hidden_dim),
            (batch_size, config.mask_feature_size, size[0] // 4, size[1] // 4),
        )
        self.queries, self.mask_features = (
            torch.randn(shape, generator=generator).to(setting.device).requires_grad_() for shape in shapes
        )
        self.mask_predictor = model.model.transformer_module.decoder.mask_predictor
        parts: nn.Module = model.model
        parts.pixel_level_module = FixedPixelLevel(self.mask_features)
        parts.transformer_module = FixedDecoder(self.mask_predictor, self.queries)
        model.requires_grad_(True)
        self.labels = blocky_labels(setting, batch_size, size, num_targets)
        self.frames = torch.zeros(batch_size, 1, 3, *size, device=setting.device)
        self.class_labels = [clip.unique() for clip in self.labels]
        pairs = zip(self.labels, self.class_labels, strict=True)
        self.masks = [(clip == classes[:, None, None]).float() for clip, classes in pairs]
        names = ("loss_cross_entropy", "loss_mask", "loss_dice")
        self.weights = dict(zip(names, (config.class_weight, config.mask_weight, config.dice_weight), strict=True))
        self.criterion = Mask2FormerLoss(Mask2FormerConfig(**config_fields(setting)), self.weights).to(setting.device)

    def transformers_loss(self) -> Tensor:
        """One round, as `Mask2FormerForUniversalSegmentation` does it."""
        predictions = [
            {
                "masks_queries_logits": torch.einsum("bqc,bchw->bqhw", self.mask_predictor(layer), self.mask_features),
                "class_queries_logits": self.model.class_predictor(layer),
            }
            for layer in self.queries
        ]
        targets = {"mask_labels": self.masks, "class_labels": self.class_labels}
        terms = self.criterion(**predictions[-1], **targets, auxiliary_predictions=predictions[:-1])
        return sum(
            weight * term
            for start, weight in self.weights.items()
            for name, term in terms.items()
            if name.startswith(start)
        )

    def our_loss(self, matching_rounds: int = 2, point_sampler: Any = uniform_points) -> Tensor:
        """Both rounds, through the model's own `forward`."""
        return self.model(
            pixel_values_videos=self.frames,
            labels=self.labels,
            context=StepContext(matching_rounds=matching_rounds, point_sampler=point_sampler),
        ).loss

    def our_loss_as_on_gpu(self) -> Tensor:
        """The same with the operations for a GPU; on a CPU, chunks have the size of its cache."""
        with patch.dict(query_loss.CHUNK_SIZES, clear=True):
            return self.our_loss()

    def difference(self) -> float:
        """Relative difference of the two losses with one round and the same points."""
        with torch.no_grad(), SamePoints():
            theirs = self.transformers_loss()
            ours = self.our_loss(
                1, lambda kind, layers, shape, generator: torch.rand(shape, device=self.labels.device)
            )
        return ((theirs - ours).abs() / theirs).item()


class SamePoints(TorchFunctionMode):
    """`torch.rand` returns the same points in every row."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.rand:
            return func(*args, **(kwargs or {}))
        *rows, num_points, axes = args[0] if isinstance(args[0], (tuple, list, torch.Size)) else args
        points = torch.rand(num_points, axes, generator=torch.Generator().manual_seed(num_points))
        return points.repeat(*rows, 1, 1).to((kwargs or {}).get("device", "cpu"))


def loss_cases(setting: Setting) -> Iterator[Case]:
    """Row 8: forward and backward pass, for two and eight images of few and more classes each."""
    for batch_size, num_targets in itertools.product(BATCH_SIZES, NUMBERS_OF_TARGETS):
        both = HeadsAndLoss(setting, batch_size, num_targets)
        yield Case(
            f"B={batch_size}, {num_targets} classes",
            partial(step, both.transformers_loss),
            partial(step, both.our_loss),
            (faster(1.4, 1.7), Bound("flops", 0.45), Bound("difference", 1e-5)),
            {"difference": both.difference()},
            has_gradients=True,
        )


def launch_cases(setting: Setting) -> Iterator[Case]:
    """Row 9: operations and synchronisations of row 8's forward pass and of its whole step on a GPU."""
    for batch_size in BATCH_SIZES:
        both = HeadsAndLoss(setting, batch_size)
        ways = (both.transformers_loss, both.our_loss_as_on_gpu)
        steps = tuple(partial(step, way) for way in ways)
        for part, (theirs, ours), bound in (
            ("forward pass", ways, Bound("operations", 0.15)),
            ("with the backward pass", steps, Bound("operations", None, 0.15)),
        ):
            name, bounds = f"B={batch_size}, {part}", (Bound("syncs.ours", 2), bound)
            yield Case(name, theirs, ours, bounds, measures=("counts",), has_gradients=True)


# ---- row 10 ---------------------------------------------------------------------------------------------------------


def second_round_cases(setting: Setting) -> Iterator[Case]:
    """Row 10: the mask loss of the second round of a step, forward and backward pass.

    Every layer has eight masks for each of two images. Our reading of the labels, once for all layers, is included.
    """
    height, width = crop_size(setting)
    num_layers = themask_config(setting, 1).decoder_layers
    generator = torch.Generator().manual_seed(0)
    cells = torch.arange((height // 32) * (width // 32)).view(height // 32, width // 32) % TARGETS_PER_IMAGE
    labels = cells.repeat_interleave(32, 0).repeat_interleave(32, 1).expand(NUM_IMAGES, 1, -1, -1).contiguous()
    masks = torch.stack([clip == label for clip in labels for label in range(TARGETS_PER_IMAGE)])
    shape = (num_layers, NUM_IMAGES, TARGETS_PER_IMAGE, height // 4, width // 4)
    logits = 3 * torch.randn(shape, generator=generator)
    labels, masks, logits = (tensor.to(setting.device) for tensor in (labels, masks, logits))
    theirs, ours = logits.clone().requires_grad_(), OurSecondRound(logits, labels)

    def official() -> Tensor:
        layers = theirs.flatten(1, 2)[:, :, None].unbind()
        return torch.stack([official_second_round(layer, masks) for layer in layers]).sum()

    with torch.no_grad():
        difference = ((official() - ours()).abs() / official()).item()
    yield Case(
        "",
        partial(step, official),
        partial(step, ours),
        (faster(8, 12), Bound("memory", 0.1), Bound("difference", 1e-6)),
        {"difference": difference},
        has_gradients=True,
    )


def official_second_round(logits: Tensor, masks: Tensor) -> Tensor:
    """As released: enlarge the logits to the label map, threshold label times score, cross-entropy and dice.

    Shapes are `(masks, 1, height / 4, width / 4)` and, of the labels, `(masks, 1, height, width)`.
    """
    enlarged = nn.functional.interpolate(logits, masks.shape[-2:]).flatten(1)
    truth = masks.to(enlarged.dtype).flatten(1)
    targets = (truth * enlarged.sigmoid() > 0.5).to(enlarged.dtype).detach()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(enlarged, targets, reduction="none").mean(1).sum()
    scores = enlarged.sigmoid()
    dice = 1 - (2 * (scores * targets).sum(1) + 1) / (scores.sum(1) + targets.sum(1) + 1)
    return cross_entropy + dice.sum()


class OurSecondRound:
    """Our loss of the logits `(layers, images, masks, height / 4, width / 4)` of secondary queries.

    The class of a mask in `labels` `(images, 1, height, width)` is its index.
    """

    def __init__(self, logits: Tensor, labels: Tensor):
        num_layers, _, num_masks = logits.shape[:3]
        config = THEMaskConfig(num_queries=num_masks, num_labels=num_masks)
        self.criterion = HierarchicalLoss(loss_settings(config), uniform_points)
        self.targets = clip_targets(labels, num_masks, config.ignore_value, exclude_ignored=False)
        self.class_table = self.targets.class_table(num_masks)
        self.logits = logits[:, :, None].clone().requires_grad_()
        every, none = np.arange(num_masks), np.empty(0, dtype=np.int64)
        pairs = [[(Assignment(none, none), Assignment(every, every))] * len(labels)] * num_layers
        _, (_, self.rows) = match_rows(pairs, self.targets.class_labels, 1, num_masks, num_masks, labels.device)

    def __call__(self) -> Tensor:
        """Cross-entropy plus dice of all layers."""
        level = MaskLevel([LevelPrediction(layer, layer) for layer in self.logits])
        maps = self.targets.maps(self.class_table, level.size)
        (masks,) = masks_of_rows([self.rows], level)
        return torch.stack([self.criterion.dense_losses(layer, maps).sum() for layer in masks.split(1)]).sum()


# ---- row 11 ---------------------------------------------------------------------------------------------------------


def frozen_stage_cases(setting: Setting) -> Iterator[Case]:
    """Row 11: a step of the second stage with a trained and with a frozen pixel level.

    First of the model alone, with all masks that it can put out, then with its loss.
    """
    crops = Setting(setting.device, crop_size(setting), setting.repeats, setting.quick)
    frames = random_frames(crops, 1, CLIP_LENGTH)
    labels = blocky_labels(crops, CLIP_LENGTH, crops.size).transpose(0, 1)
    trained, frozen = (themask(setting, CLIP_LENGTH).requires_grad_(True).train() for _ in range(2))
    frozen.freeze_pixel_level()

    def loss(model: THEMaskForVideoSemanticSegmentation) -> Tensor:
        return model(pixel_values_videos=frames, labels=labels).loss

    for name, forward, most in (("model", partial(predict, frames=frames), 0.25), ("model and loss", loss, None)):
        theirs, ours = partial(forward, trained), partial(forward, frozen)
        kept = [saved_bytes(*pair) for pair in ((theirs, trained.parameters()), (ours, frozen.parameters()))]
        yield Case(
            f"T={CLIP_LENGTH}, {name}",
            partial(step, theirs),
            partial(step, ours),
            (Bound("saved_bytes", most, 0.22),),
            {"saved_bytes": kept[1] / kept[0]},
            has_gradients=True,
        )


def predict(model: THEMaskForVideoSemanticSegmentation, frames: Tensor) -> Tensor:
    """A number that depends on every prediction for a clip."""
    outputs = model(pixel_values_videos=frames, output_auxiliary_logits=True)
    layers = [*outputs.auxiliary_logits, {name: value for name, value in outputs.items() if name.endswith("logits")}]
    logits = [each for layer in layers for name, each in layer.items() if name.endswith("queries_logits")]
    return torch.stack([each.mean() for each in logits if each is not None]).sum()

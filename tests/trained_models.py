# SPDX-License-Identifier: Apache-2.0
"""Tiny models of every kind that is trained, for what must hold for all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from families import SMALL_WINDOWS, cffm_model, mpvss_model
from tiny import tiny_model
from tiny_segmenters import per_frame_model

NUM_CLASSES = 8  # of the synthetic videos


class TrainedModel(NamedTuple):
    """How to build a model, and what its training needs to know."""

    build: Callable[..., PreTrainedModel]
    frame_offsets: tuple[int, ...]
    one_round_steps: int = 0
    consistency_weight: float = 0.0


def themask(num_frames: int, has_dropout: bool = True) -> PreTrainedModel:
    without = {} if has_dropout else {"dropout": 0.0, "aggregator_dropout": 0.0}
    return tiny_model(num_frames=num_frames, num_labels=NUM_CLASSES, **without)


def stage_2(has_dropout: bool = True) -> PreTrainedModel:
    # In the backbone of a random network, layer norms enlarge what rounding leaves of flat, hidden patches.
    model = themask(2, has_dropout)
    model.freeze_pixel_level()
    return model


def cffm(has_dropout: bool = True) -> PreTrainedModel:
    return cffm_model(
        **SMALL_WINDOWS,
        classifier_dropout=0.1 if has_dropout else 0.0,
        ignored_pixels="excluded",  # so that clips count differently
        num_labels=NUM_CLASSES,
    )


def mpvss(has_dropout: bool = True) -> PreTrainedModel:
    # It has none. From a flow that is one everywhere, only the fusion would learn anything in a first step.
    model = mpvss_model(segmenter={"num_labels": NUM_CLASSES})
    torch.nn.init.normal_(model.flow.fusion.weight, std=0.1)
    return model


def segformer(has_dropout: bool = True) -> PreTrainedModel:
    return per_frame_model("segformer", num_labels=NUM_CLASSES)  # it has none


TRAINED_MODELS = {
    "themask_t1": TrainedModel(lambda **options: themask(1, **options), (0,), one_round_steps=2),
    "themask_t2": TrainedModel(lambda **options: themask(2, **options), (-1, 0), one_round_steps=2),
    "themask_t2_masked": TrainedModel(stage_2, (-1, 0), consistency_weight=0.5),
    "cffm": TrainedModel(cffm, (-2, -1, 0)),
    "mpvss": TrainedModel(mpvss, (-2, 0)),
    "segformer": TrainedModel(segformer, (0,), consistency_weight=1.0),
}

# SPDX-License-Identifier: Apache-2.0
"""Rows 6 and 7: from classes and masks to label maps at the size of the video."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerImageProcessor
from transformers.utils import ModelOutput

from transformers_themask import THEMaskVideoProcessor
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentationOutput
from transformers_themask.models.scores_to_labels import query_scores

from .measuring import Bound, Case, Setting, faster
from .models import NUM_LABELS, config_fields

KINDS = {"8 classes": 8, "16 classes": 16, "diffuse": 0}
# For chains that are not the same by a resize, or by squashing scores before it.
AGREEMENT = Bound("equal_labels", None, at_least=True)
# Width of what the network sees over that of the video: 480x853 is stretched to 480x864.
STRETCH = 853 / 864


def direct_cases(setting: Setting) -> Iterator[Case]:
    """Row 6: enlarging the scores of all classes, and ours; one set of queries, one frame."""
    for kind, num_classes in KINDS.items():
        outputs, size = synthetic_outputs(setting, num_classes, num_levels=1), target_size(setting)
        yield label_case(
            kind,
            lambda outputs=outputs, size=size: direct_labels(outputs, size),
            lambda outputs=outputs, size=size: our_labels(outputs, size),
            (faster(3.5, 7), Bound("memory", 0.25), Bound("equal_labels", 1, at_least=True)),
        )


def chain_cases(setting: Setting) -> Iterator[Case]:
    """Row 7: the official chain for both sets of queries, and that of Transformers' Mask2Former for one."""
    size = target_size(setting)
    processor = Mask2FormerImageProcessor()
    for kind, num_classes in list(KINDS.items())[: 1 if setting.quick else None]:
        both = synthetic_outputs(setting, num_classes, num_levels=2)
        yield label_case(
            f"official, {kind}",
            lambda both=both: official_labels(both, setting.size, size),
            lambda both=both: our_labels(both, size),
            (faster(7, 12), AGREEMENT),
        )
        one = synthetic_outputs(setting, num_classes, num_levels=1)
        as_image = ModelOutput(
            class_queries_logits=one["class_queries_logits"], masks_queries_logits=one["masks_queries_logits"][:, 0]
        )
        yield label_case(
            f"Mask2Former, {kind}",
            lambda as_image=as_image: processor.post_process_semantic_segmentation(as_image, target_sizes=[size])[0],
            lambda one=one: our_labels(one, size),
            (faster(5, 9), AGREEMENT),
        )


def label_case(name: str, baseline: Any, ours: Any, bounds: tuple[Bound, ...]) -> Case:
    """A case whose two ways give label maps."""
    with torch.no_grad():
        equal = (baseline() == ours()).double().mean().item()
    return Case(name, baseline, ours, bounds, {"equal_labels": equal})


def target_size(setting: Setting) -> tuple[int, int]:
    """Height and width of the video."""
    return setting.size[0], round(setting.size[1] * STRETCH)


def synthetic_outputs(
    setting: Setting, num_classes: int, num_levels: int, num_labels: int = NUM_LABELS
) -> ModelOutput:
    """What a model might say about one frame.

    Args:
        setting ([`Setting`]): The size of frames.
        num_classes (`int`): So many queries are sure of a class each and share the frame out among them, the others
            are sure of nothing being there; with 0 all queries have smooth random masks and unsure classes.
        num_levels (`int`): 1 for video queries alone, 2 for frame queries too.
        num_labels (`int`, *optional*): Classes that the model knows.
    """
    generator = torch.Generator().manual_seed(num_classes)
    num_queries = config_fields(setting).get("num_queries", 100)
    rows, columns = setting.size[0] // 4, setting.size[1] // 4
    fields = {}
    for prefix in ("", "frame_")[:num_levels]:
        coarse = torch.randn(1, num_queries, 4, 7, generator=generator)
        masks = nn.functional.interpolate(coarse, (rows, columns), mode="bicubic", align_corners=False)
        masks = 4 * masks + 0.5 * torch.randn(masks.shape, generator=generator)
        classes = torch.randn(1, num_queries, num_labels + 1, generator=generator)
        if num_classes:
            shares = (8 * masks[:, :num_classes]).softmax(1)
            masks[:, :num_classes] = torch.logit(shares, eps=1e-3)
            masks[:, num_classes:] -= 12
            classes[..., -1] += 12
            for query in range(min(num_classes, num_queries)):
                classes[:, query, [query, -1]] += torch.tensor([12.0, -12.0])
        per_frame = prefix == "frame_"
        fields[f"{prefix}class_queries_logits"] = (classes[:, None] if per_frame else classes).to(setting.device)
        fields[f"{prefix}masks_queries_logits"] = masks[:, None].to(setting.device)
    return THEMaskForVideoSemanticSegmentationOutput(**fields)


def our_labels(outputs: ModelOutput, size: tuple[int, int]) -> Tensor:
    """Label map `(height, width)` of our processor."""
    processor = THEMaskVideoProcessor(do_resize=False)
    return processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0][0]


def scores_of(outputs: ModelOutput) -> Tensor:
    """Class scores `(1, num_labels, height / 4, width / 4)`, the mean over the sets of queries."""
    scores = query_scores(outputs["class_queries_logits"][0], outputs["masks_queries_logits"][0, 0])
    if "frame_masks_queries_logits" in outputs:
        frame_classes, frame_masks = outputs["frame_class_queries_logits"], outputs["frame_masks_queries_logits"]
        scores = 0.5 * scores + 0.5 * query_scores(frame_classes[0, 0], frame_masks[0, 0])
    return scores[None]


def direct_labels(outputs: ModelOutput, size: tuple[int, int]) -> Tensor:
    """All class scores at full size, then the argmax."""
    return nn.functional.interpolate(scores_of(outputs), size, mode="bilinear", align_corners=False)[0].argmax(0)


def official_labels(outputs: ModelOutput, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """As released: to the size of the network's input, to the size of the video, softmax, argmax."""
    scores = nn.functional.interpolate(scores_of(outputs), input_size, mode="bilinear", align_corners=False)
    scores = nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)
    return scores.softmax(1).argmax(1)[0]

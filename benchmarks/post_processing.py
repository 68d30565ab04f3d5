# SPDX-License-Identifier: Apache-2.0
"""Rows 6 and 7: label maps of the video's size from classes and masks."""

from collections.abc import Iterator
from functools import partial
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
# Of chains that resize twice, or squash scores before they resize.
AGREEMENT = Bound("equal_labels", None, at_least=True)
# Width of the video over that of the network's input: 480x853 is stretched to 480x864.
STRETCH = 853 / 864


def direct_cases(setting: Setting) -> Iterator[Case]:
    """Row 6: enlarging the scores of all classes, and ours; one set of queries, one frame."""
    size = target_size(setting)
    bounds = (faster(3.5, 7), Bound("memory", 0.25), Bound("equal_labels", 1, at_least=True))
    for kind, num_classes in KINDS.items():
        outputs = synthetic_outputs(setting, num_classes, num_levels=1)
        yield label_case(kind, partial(direct_labels, outputs, size), partial(our_labels, outputs, size), bounds)


def chain_cases(setting: Setting) -> Iterator[Case]:
    """Row 7: the official chain for both sets of queries, and that of Transformers' Mask2Former for one."""
    size, processor = target_size(setting), Mask2FormerImageProcessor()
    for kind, num_classes in list(KINDS.items())[: 1 if setting.quick else None]:
        both, one = (synthetic_outputs(setting, num_classes, num_levels) for num_levels in (2, 1))
        official = partial(official_labels, both, setting.size, size)
        yield label_case(f"official, {kind}", official, partial(our_labels, both, size), (faster(7, 12), AGREEMENT))
        image = ModelOutput(one, masks_queries_logits=one["masks_queries_logits"][:, 0])
        chain = partial(processor.post_process_semantic_segmentation, image, target_sizes=[size])
        ours = partial(our_labels, one, size)
        yield label_case(f"Mask2Former, {kind}", lambda chain=chain: chain()[0], ours, (faster(5, 9), AGREEMENT))


def label_case(name: str, baseline: Any, ours: Any, bounds: tuple[Bound, ...]) -> Case:
    """A case of two ways to label maps."""
    with torch.no_grad():
        equal = (baseline() == ours()).double().mean().item()
    return Case(name, baseline, ours, bounds, {"equal_labels": equal})


def target_size(setting: Setting) -> tuple[int, int]:
    """Height and width of the video."""
    return setting.size[0], round(setting.size[1] * STRETCH)


def synthetic_outputs(
    setting: Setting, num_classes: int, num_levels: int, num_labels: int = NUM_LABELS
) -> ModelOutput:
    """Plausible outputs for one frame.

    With `num_classes`, so many queries are certain of a class each and share the frame, the others are certain of
    nothing; with 0, all have smooth random masks and uncertain classes. `num_levels` is 2 with frame queries, else 1.
    """
    generator = torch.Generator().manual_seed(num_classes)
    num_queries = config_fields(setting).get("num_queries", 100)
    rows, columns = setting.size[0] // 4, setting.size[1] // 4
    fields: dict[str, Any] = {}
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
    """As released: resize to the network's input, resize to the video, softmax, argmax."""
    scores = nn.functional.interpolate(scores_of(outputs), input_size, mode="bilinear", align_corners=False)
    scores = nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)
    return scores.softmax(1).argmax(1)[0]

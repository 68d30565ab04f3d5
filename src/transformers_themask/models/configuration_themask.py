# SPDX-License-Identifier: Apache-2.0
"""Configuration of THE-Mask."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_query_segmenter import QuerySegmenterConfig

MINIMA = {
    "num_frames": 1,
    "secondary_mask_weight": 0,
    "secondary_dice_weight": 0,
    "secondary_round_weight": 0,
    "frame_loss_weight": 0,
}


@strict
class THEMaskConfig(QuerySegmenterConfig):
    r"""Configuration of a [`THEMaskForVideoSemanticSegmentation`].

    The fields besides these are those of [`QuerySegmenterConfig`], with the names, meanings and defaults of
    [`Mask2FormerConfig`], so a Mask2Former configuration or checkpoint loads as it is. The defaults are what the
    released code of THE-Mask (An et al., BMVC 2023) computes.

    Args:
        num_frames: Frames per training clip. 1 builds the Mask2Former decoder and treats every frame on its own; more
            builds the decoder chosen by `temporal_mode`. Any number of frames can be given at inference.
        temporal_mode: Decoder of a model with `num_frames > 1` (Table 3). `"video_frame"`: the Temporal Aggregation
            Decoder. `"one_to_frame"`: one query set, copied to every frame. `"one_to_video"`: one query set attends to
            all frames.
        matching_rounds: 1 matches one query per class, 2 adds a secondary query per class (section 3.2).
        second_round_cost: Cost of the second round: `"mask"` cross-entropy only (paper), `"full"` as in the first
            round, `"auto"` the former for one-frame and the latter for longer clips (as released).
        secondary_loss: Mask loss of the secondary queries: `"soft"` (Eq. 5) or `"original"`, that of the primary ones
            (Table 4).
        secondary_target: The soft mask, predicted mask ∘ label: `"thresholded"` at 0.5 (as released) or `"soft"` (as
            printed).
        secondary_points: Where the soft loss is taken: `"dense"`, every pixel, or `"sampled"` points.
        attention_mask_source: Whose masks restrict the temporal decoder's cross-attention: those of the `"video"`
            queries (as released) or of the `"frame"` queries (Eq. 8).
        frame_head_init: Frame-level heads missing from a loaded checkpoint start `"fresh"` or as a `"copy"` of the
            video-level ones.
        aggregator_dropout: Dropout of the temporal aggregation module.
        secondary_mask_weight, secondary_dice_weight: Weights of the soft mask losses.
        secondary_round_weight: Weight α of the whole second round (Eq. 6).
        frame_loss_weight: Weight of every frame-level loss against its video-level counterpart.
        output_auxiliary_logits: Return the predictions of the intermediate decoder layers in evaluation mode too.

    Raises:
        ValueError: For contradicting fields, values out of range or an unknown backbone.
        StrictDataclassError: For a field of the wrong type.
    """

    model_type = "themask"
    clip_sampler = "offsets"

    # Architecture.
    num_frames: int = 1
    temporal_mode: Literal["video_frame", "one_to_frame", "one_to_video"] = "video_frame"
    attention_mask_source: Literal["video", "frame"] = "video"
    aggregator_dropout: float | int = 0.1
    output_auxiliary_logits: bool | None = None

    # Matching and loss.
    matching_rounds: int = 2
    second_round_cost: Literal["auto", "mask", "full"] = "auto"
    secondary_loss: Literal["soft", "original"] = "soft"
    secondary_target: Literal["thresholded", "soft"] = "thresholded"
    secondary_points: Literal["dense", "sampled"] = "dense"
    secondary_mask_weight: float | int = 0.5
    secondary_dice_weight: float | int = 0.5
    secondary_round_weight: float | int = 0.5
    frame_loss_weight: float | int = 0.25

    # Initialisation.
    frame_head_init: Literal["fresh", "copy"] = "fresh"

    def check_fields(self) -> None:
        """Reject values no model can be built or trained with; see [`QuerySegmenterConfig`]."""
        super().check_fields()
        for name, minimum in MINIMA.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"`{name}` must be at least {minimum}. Got {getattr(self, name)}.")
        if not 0 <= self.aggregator_dropout <= 1:
            raise ValueError(f"`aggregator_dropout` must lie in [0, 1]. Got {self.aggregator_dropout}.")
        if self.matching_rounds not in (1, 2):
            raise ValueError(f"`matching_rounds` must be 1 or 2. Got {self.matching_rounds}.")


__all__ = ["THEMaskConfig"]

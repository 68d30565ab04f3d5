# SPDX-License-Identifier: Apache-2.0
"""CFFM: coarse-to-fine feature mining for video semantic segmentation (Sun et al., CVPR 2022)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .backbones import build_backbone, four_feature_maps, smallest_side
from .configuration_cffm import OFFICIAL_OFFSETS, CFFMConfig
from .decoder_cffm import CFFMHead, ContextPooling, CrossFrameAttention, FeatureFusion
from .inputs import check_inputs
from .label_counts import averaged_over_processes, count_classes
from .outputs import VideoSegmentationOutput
from .pretrained_model import VideoPreTrainedModel
from .step_context import StepContext
from .streaming import StreamingMixin

# The released test script's reference frames of a video's first frames. Those before have none.
OFFICIAL_REFERENCES = {3: (0, 1, 2), 4: (0, 2, 3), 5: (0, 2, 4), 6: (0, 2, 4), 7: (0, 3, 5), 8: (0, 3, 6)}


@dataclass
class CFFMForVideoSemanticSegmentationOutput(VideoSegmentationOutput):
    r"""Outputs of [`CFFMForVideoSemanticSegmentation`].

    Args:
        loss (`()`, returned with `labels`): Total loss, the sum of `loss_terms`.
        loss_terms (returned with `labels`): `loss_main` of the target frame and `loss_auxiliary`, weighted, of the
            per-frame classifier.
        logits (`(batch, num_frames, num_labels, height / 4, width / 4)`): Class scores: of the last frame of a clip
            with `config.num_frames` frames from all of them, of every other frame by itself.
        auxiliary_logits (returned with `labels`): Class scores of every frame by itself, of the same shape.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    auxiliary_logits: Tensor | None = None


class RecentFrames(NamedTuple):
    """The state of a stream.

    `features` of the newest frames at stride 8, `(batch, reach, height / 8, width / 8, hidden_dim)`, zeros where there
    was none. `num_seen` `(batch, 1)`, on the CPU: how many frames there have been, counted up to `reach`. Both may be
    `None` before the first frame.
    """

    features: Tensor | None = None
    num_seen: Tensor | None = None


class CFFMForVideoSemanticSegmentation(StreamingMixin, VideoPreTrainedModel):
    r"""CFFM: the features of a target frame are mined from three earlier frames, the further away the coarser.

    A clip holds the reference frames and then the target frame, at `config.reference_offsets` from it. A stream takes
    every frame of a video once and finds the references among the frames before; nothing is encoded twice.

    Example:
    ```python
    >>> import torch
    >>> from transformers_themask import CFFMConfig, CFFMForVideoSemanticSegmentation
    >>> model = CFFMForVideoSemanticSegmentation(CFFMConfig(backbone="mit-b0", num_labels=124)).eval()
    >>> model(pixel_values_videos=torch.randn(1, 4, 3, 64, 96)).logits.shape
    torch.Size([1, 4, 124, 16, 24])

    ```
    """

    config: CFFMConfig
    config_class = CFFMConfig
    base_model_prefix = "backbone"
    # Sharded as one unit: a frame without references skips the layers, and processes must gather the same ones.
    _no_split_modules: list[str] = []
    stream_modes = ("recurrent",)

    def __init__(self, config: CFFMConfig):
        super().__init__(config)
        config.check_fields()
        self.backbone = build_backbone(config.backbone_config)
        self.head = CFFMHead(config, list(self.backbone.channels))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's input embedding."""
        return self.backbone.get_input_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise as the official code does (a pretrained backbone is initialised by its own class)."""
        super()._init_weights(module)
        if isinstance(module, FeatureFusion):
            init.kaiming_normal_(module.convolution.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, ContextPooling):
            init.constant_(module.projection.weight, 1 / module.projection.in_features)  # a mean
            init.zeros_(module.projection.bias)
        elif isinstance(module, CrossFrameAttention):
            own, *pooled = module.position_biases
            init.zeros_(own)
            for bias in (*pooled, *([] if module.neighbour_bias is None else [module.neighbour_bias])):
                init.trunc_normal_(bias, std=0.02)

    def loss_counts(self, labels: Tensor, context: StepContext | None = None) -> Tensor:
        """Number of pixels of all frames, and of the target frames; see [`VideoPreTrainedModel`]."""
        counts = count_classes(labels.flatten(0, 1)[:, None], self.config.num_labels, self.config.ignore_value).sum(1)
        if self.config.ignored_pixels == "counted":
            counts = torch.full_like(counts, labels.shape[-2] * labels.shape[-1])
        counts = counts.view(labels.shape[:2])
        return torch.stack([counts.sum(), counts[:, -1].sum()]).to(torch.float64)

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        context: StepContext | None = None,
        **kwargs: Any,
    ) -> CFFMForVideoSemanticSegmentationOutput:
        r"""Segment clips and, given labels, compute the loss.

        Args:
            pixel_values_videos (`(batch, num_frames, 3, height, width)`): Normalised frames of any size from 29x29 for
                the published backbones: the reference frames and, last, the target frame. In a clip of another length
                than `config.num_frames` every frame stands for itself.
            labels (`(batch, num_frames, label_height, label_width)`): Class indices, `config.ignore_value` where there
                is none.
            context: The optimiser step that the batch is a part of. The losses of its batches add up to what one large
                batch would give, except through batch norms.

        Raises:
            ValueError: If a shape or value is not as described.
        """
        check_inputs(pixel_values_videos, labels, kwargs, size_divisor=1)
        self._check_size(pixel_values_videos)
        batch_size, num_frames = pixel_values_videos.shape[:2]
        is_whole = num_frames == self.config.num_frames
        if labels is not None and not is_whole:
            raise ValueError(
                f"`pixel_values_videos` must hold the {self.config.num_frames} frames of a clip to compute the loss. "
                f"Got {num_frames}. They lie at `config.reference_offsets` and 0."
            )
        fused = self._fused(pixel_values_videos.flatten(0, 1))
        if not is_whole:
            logits = self.head.classify_frames(fused).unflatten(0, (batch_size, num_frames))
            return CFFMForVideoSemanticSegmentationOutput(logits=logits)
        features = self.head.at_stride_8(fused).unflatten(0, (batch_size, num_frames))
        targets = self.head.classify_targets(features[:, -1], features[:, :-1], fused.shape[-2:])
        fused = fused.unflatten(0, (batch_size, num_frames))
        by_themselves = fused if labels is not None else fused[:, :-1]
        auxiliary = self.head.classify_frames(by_themselves.flatten(0, 1)).unflatten(0, by_themselves.shape[:2])
        outputs = CFFMForVideoSemanticSegmentationOutput(
            logits=torch.cat([auxiliary[:, : num_frames - 1], targets[:, None]], dim=1)
        )
        if labels is not None:
            outputs.auxiliary_logits = auxiliary
            terms = self._loss_terms(auxiliary, targets, labels, (context or StepContext()).loss_counts)
            outputs.loss = torch.stack(list(terms.values())).sum()
            outputs.loss_terms = {name: term.detach() for name, term in terms.items()}
        return outputs

    def initial_state(self, num_frames: int = 1, frame_stride: int = 1, mode: str | None = None) -> RecentFrames:
        """The state before the first frame of videos; `config.reference_offsets` is all that it depends on."""
        return RecentFrames()

    def clip_step(
        self, pixel_values_videos: Tensor, state: RecentFrames | None
    ) -> tuple[CFFMForVideoSemanticSegmentationOutput, RecentFrames | None]:
        """Segment the next frames of every video of a batch; see [`StreamingMixin.clip_step`].

        Each equals the last frame of `forward` on the clip of its references, found as `config.first_frames` says
        where the video is still short.

        Raises:
            ValueError: If videos or frames are not those of the state, or as in `forward`.
        """
        if state is None:
            return self(pixel_values_videos), None
        check_inputs(pixel_values_videos, None, {}, size_divisor=1)
        logits = []
        for frame in pixel_values_videos.unbind(1):
            of_frame, state = self._frame_step(frame, state)
            logits.append(of_frame)
        return CFFMForVideoSemanticSegmentationOutput(logits=torch.stack(logits, dim=1)), state

    def _frame_step(self, frames: Tensor, state: RecentFrames) -> tuple[Tensor, RecentFrames]:
        """Class scores of the newest frame `(batch, 3, height, width)` of every video, and the next state."""
        self._check_size(frames)
        fused = self._fused(frames)
        newest = self.head.at_stride_8(fused)[:, None]
        if state.features is None or state.num_seen is None:
            state = RecentFrames(
                torch.zeros_like(newest).expand(-1, self.config.reach, -1, -1, -1),
                torch.zeros(len(newest), 1, dtype=torch.long),
            )
        assert state.features is not None and state.num_seen is not None
        self._check_state(newest, state.features)
        logits = self._answer(fused, newest[:, 0], state.features, state.num_seen)
        next_state = RecentFrames(
            torch.cat([state.features[:, 1:], newest], dim=1), (state.num_seen + 1).clamp(max=self.config.reach)
        )
        return logits, next_state

    def _answer(self, fused: Tensor, newest: Tensor, earlier: Tensor, num_seen: Tensor) -> Tensor:
        """Class scores of the newest frames, given as maps at stride 4 and 8, from these and the earlier ones."""
        # On the CPU, where `num_seen` is: an accelerator is not waited for.
        all_places, all_alone = reference_tables(self.config)
        places = num_seen.new_tensor(all_places)[num_seen[:, 0]]
        is_alone = num_seen.new_tensor(all_alone, dtype=torch.bool)[num_seen[:, 0]]
        # An exported step serves all frames of a video.
        is_exporting = torch.compiler.is_exporting()
        if not is_exporting and is_alone.all():
            return self.head.classify_frames(fused)
        videos = torch.arange(earlier.shape[0], device=earlier.device)[:, None]
        references = earlier[videos, places.to(earlier.device, non_blocking=True)]
        is_first = num_seen[:, 0] == 0
        if is_exporting or is_first.any():
            is_first = is_first.to(newest.device, non_blocking=True)[:, None, None, None, None]
            references = torch.where(is_first, newest[:, None], references)
        targets = self.head.classify_targets(newest, references, fused.shape[-2:])
        if not is_exporting and not is_alone.any():
            return targets
        is_alone = is_alone.to(targets.device, non_blocking=True)
        return torch.where(is_alone[:, None, None, None], self.head.classify_frames(fused), targets)

    def _check_size(self, frames: Tensor) -> None:
        height, width = frames.shape[-2:]
        # Two places at stride 4 are one at stride 8.
        side = max(5, smallest_side(self.config.backbone_config))
        if not torch.compiler.is_exporting() and min(height, width) < side:
            raise ValueError(
                f"`pixel_values_videos` must have a height and width of at least {side} for this backbone. Got "
                f"{height}x{width}. Enlarge the frames."
            )

    def _check_state(self, newest: Tensor, earlier: Tensor) -> None:
        expected, found = (earlier.shape[0], *earlier.shape[2:4]), tuple(newest.shape[:1] + newest.shape[2:4])
        # An exported step serves frames of all sizes.
        if not torch.compiler.is_exporting() and found != expected:
            raise ValueError(
                "`pixel_values_videos` must hold the videos of the state, at its size: "
                f"{expected[0]} with maps of {expected[1]}x{expected[2]} at stride 8. Got {found[0]} with maps of "
                f"{found[1]}x{found[2]}. Begin another video with `initial_state()`."
            )

    def _fused(self, frames: Tensor) -> Tensor:
        return self.head.fusion(four_feature_maps(self.backbone, frames))

    def _loss_terms(
        self, auxiliary: Tensor, targets: Tensor, labels: Tensor, loss_counts: Tensor | None
    ) -> dict[str, Tensor]:
        """Cross-entropy of every frame by itself and of the targets; divided by numbers of pixels, not of labels."""
        own_counts = self.loss_counts(labels).to(labels.device, non_blocking=True)  # checks the labels as well
        if loss_counts is None:
            loss_counts = averaged_over_processes(own_counts)
        num_auxiliary, num_main = loss_counts.to(labels.device, non_blocking=True).clamp(min=1).float()
        weight = self.config.auxiliary_loss_weight
        with torch.autocast(labels.device.type, enabled=False):
            return {
                "loss_main": self._cross_entropy(targets, labels[:, -1]) / num_main,
                "loss_auxiliary": weight
                * self._cross_entropy(auxiliary.flatten(0, 1), labels.flatten(0, 1))
                / num_auxiliary,
            }

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the labelled pixels of frames."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        return nn.functional.cross_entropy(
            logits, labels.long(), ignore_index=self.config.ignore_value, reduction="sum"
        )


def reference_tables(config: CFFMConfig) -> tuple[list[list[int]], list[bool]]:
    """Places of references among the `config.reach` newest frames, by their number; and whether a frame is alone."""
    reach, offsets = config.reach, config.reference_offsets
    # The first frame stands for those before it.
    places = [[reach - min(max(num_seen, 1), -offset) for offset in offsets] for num_seen in range(reach + 1)]
    if config.first_frames == "repeated":
        return places, [False] * (reach + 1)
    lists = OFFICIAL_REFERENCES if tuple(offsets) == OFFICIAL_OFFSETS else {}
    for num_seen, indices in lists.items():
        places[num_seen] = [reach - num_seen + index for index in indices]
    return places, [num_seen < reach and num_seen not in lists for num_seen in range(reach + 1)]


__all__ = ["CFFMForVideoSemanticSegmentation", "CFFMForVideoSemanticSegmentationOutput"]

# SPDX-License-Identifier: Apache-2.0
"""Which passes over a video test-time augmentation makes, and the video processor of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers_themask.models.protocols import VideoModel, VideoProcessor

COMBINATIONS = ("votes", "scores")
MIN_SCALE, MAX_SCALE = 0.1, 10


@dataclass(frozen=True)
class Augmentation:
    """How one pass sees a video: enlarged by `scale`, and mirrored or not."""

    scale: float = 1.0
    flip: bool = False


@dataclass(frozen=True)
class TTA:
    """Test-time augmentation as in MVC (Liang et al., PVUW 2024, equation 8).

    With `flip`, a mirrored video gets the mirrored result: with scores but for rounding, with votes except where a
    tie is decided between the picture and the mirror image of one scale, as the one that is not mirrored then wins.

    Args:
        scales: Factors of the network's input size; the paper's are 0.9, 1.0, 1.1 and 1.2.
        flip: Whether the video is also mirrored at every scale.
        combine: `"votes"` gives a pixel the label of most passes; of a tie, the largest scale decides, unmirrored
            before mirrored. `"scores"` averages the class scores instead.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    combine: str = "votes"

    def __post_init__(self):
        rising = sorted(self.scales)
        in_range = all(MIN_SCALE <= scale <= MAX_SCALE for scale in rising)
        if not rising or len(set(rising)) < len(rising) or not in_range:
            raise ValueError(
                f"`scales` must be numbers from {MIN_SCALE} to {MAX_SCALE} that differ, at least one. "
                f"Got {list(self.scales)}."
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(f"`combine` must be one of {', '.join(COMBINATIONS)}. Got {self.combine!r}.")
        if self.combine == "votes" and len(self.passes) == 2:
            first, second = ("the smaller", "larger") if len(self.scales) == 2 else ("the mirrored", "other")
            raise ValueError(
                f"`combine` must be 'scores' for two inputs, as {first} one never outvotes the {second}. "
                "Got 'votes'. Say `--tta-combine scores` (of run_vss.py: `--eval_combine scores`), or add scales."
            )

    @property
    def passes(self) -> list[Augmentation]:
        """The passes in rising priority: smaller scales first, as in the paper, each mirrored and then not."""
        flips = (True, False) if self.flip else (False,)
        return [Augmentation(float(scale), flipped) for scale in sorted(self.scales) for flipped in flips]


def scaled_processor(processor: VideoProcessor, scale: float) -> VideoProcessor:
    """A video processor whose target size is scaled on all its edges, the cap of the long side included.

    Raises a `ValueError` if the processor leaves frames as large as they are.
    """
    if scale == 1:
        return processor
    if not processor.do_resize or not processor.size:
        raise ValueError(
            f"`scales` must be 1.0 for a processor that does not resize frames. Got {scale:g}. Set its `do_resize` "
            "and `size`."
        )
    return processor.scaled(scale)


def scaled_processors(model: VideoModel, processor: VideoProcessor, tta: TTA) -> dict[float, VideoProcessor]:
    """The video processor of each scale; a `ValueError` if model or processor take frames of one size only."""
    square = getattr(model, "square_input_size", None) or getattr(model.config, "square_input_size", None)
    # Those that score pixels take any square.
    is_fixed = not getattr(model.config, "is_semantic", False)
    if square is not None and is_fixed and any(scale != 1 for scale in tta.scales):
        kind = getattr(model.config, "segmenter_config", model.config).model_type
        raise ValueError(
            f"`scales` must be 1.0 for a {kind} model, whose input is always {square['height']}x{square['width']}. "
            f"Got {', '.join(f'{scale:g}' for scale in tta.scales)}. Mirrored pictures are possible."
        )
    return {scale: scaled_processor(processor, scale) for scale in sorted(tta.scales)}


def check_sizes(processors: Mapping[float, VideoProcessor], size: tuple[int, int]) -> None:
    """Raise a `ValueError` if rounding gives the network frames of one size at two scales."""
    scales: dict[tuple[int, int], float] = {}
    if len(processors) == 1:
        return
    for scale, processor in processors.items():
        seen = size_seen(processor, size)
        other = scales.setdefault(seen, scale)
        if other != scale:
            raise ValueError(
                "`scales` must differ in what the network sees. "
                f"Got {other:g} and {scale:g}, which both make {seen[0]}x{seen[1]} of frames of {size[0]}x{size[1]}. "
                f"Choose scales further apart: edges are rounded to multiples of {processor.size_divisor or 1}."
            )


def size_seen(processor: VideoProcessor, size: tuple[int, int]) -> tuple[int, int]:
    """Size of a frame in the network's input, without padding."""
    return processor.content_size(size, processor.input_size(size))

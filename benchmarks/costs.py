# SPDX-License-Identifier: Apache-2.0
"""Print parameters, operations and speed of every family as MPVSS reports them (Weng et al., NeurIPS 2023, Table 1).

    python -m benchmarks costs
    python -m benchmarks costs --models mpvss_r50 mpvss_swin_l --time

A stream of 15 frames of 480x853, padded to 480x864, is segmented frame by frame with 124 classes, up to the class
scores. Weights are random.

params    millions of parameters, and those of the flow; a norm of Transformers' Swin that is never used is left out
GFLOPs    giga-operations per frame of this package, with class scores at stride 4: the mean over the stream, with its
          first frames and key frames; the maximum; and the mean's ratio to the model of single frames
official  likewise of the released codes of Mask2Former and MPVSS: with the masks of all layers at stride 4 (key frames
          are counted with Transformers' Mask2Former), and masks enlarged to the frame before they become class scores
FPS       with `--time`: frames per second on the CPU, with one thread, of the model and of that of single frames, and
          their ratio: the two alternate frame by frame, the times from one key frame to the next make one ratio, and
          the median is printed
paper     printed there: millions of parameters, GFLOPs and their ratio, frames per second on a GPU (SegFormer and
          CFFM: Sun et al., CVPR 2022; Mask2Former and THE-Mask with MiT: An et al., BMVC 2023). The 114.0 million of
          MPVSS with Swin-T are a misprint: its released code has 87.5

Operations are counted on tensors without content by the rules of fvcore, as in the paper. A multiplication with its
addition is one. Besides products and convolutions, every element counts 5 of a layer or group norm, 2 of a batch norm,
and 4 of bilinear resizing or sampling: the samples of deformable attention count, their weighted sum does not.
Softmax, activations, sums and gathers are free, and so is the step from class scores to label maps.
"""

import argparse
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig, SwinConfig

from transformers_themask import (
    MiTConfig,
    MPVSSConfig,
    MPVSSForVideoSemanticSegmentation,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
    THEMaskConfig,
    THEMaskForVideoSemanticSegmentation,
)

from .measuring import table, take_turns
from .models import NUM_LABELS, on_meta
from .stream import Task, paired_ratio
from .whole_clip import STAGES

SIZE, SIZE_DIVISOR = (480, 853), 32
NUM_FRAMES = 15


def resnet(blocks: int) -> PreTrainedConfig:
    """A ResNet with `blocks` blocks in its third stage."""
    return ResNetConfig(depths=[3, 4, blocks, 3], out_features=STAGES)


def swin(width: int, blocks: int, heads: int, window: int) -> PreTrainedConfig:
    """A Swin with `blocks` blocks in its third stage and `heads` heads in its first."""
    heads_of_stages = [heads * 2**stage for stage in range(len(STAGES))]
    sizes = {"embed_dim": width, "depths": [2, 2, blocks, 2], "num_heads": heads_of_stages, "window_size": window}
    return SwinConfig(**sizes, out_features=STAGES)


# New for every model, which may change its own.
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    "r50": partial(resnet, 6),
    "r101": partial(resnet, 23),
    "swin_t": partial(swin, 96, 6, 3, 7),
    "swin_s": partial(swin, 96, 18, 3, 7),
    "swin_b": partial(swin, 128, 18, 4, 12),
    "swin_l": partial(swin, 192, 18, 6, 12),
    "mit_b1": partial(MiTConfig.from_size, "mit-b1"),
}


@dataclass(frozen=True)
class Printed:
    """Millions of parameters, giga-operations per frame and frames per second in a paper."""

    params: float | None = None
    gigaflops: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Entry:
    """A family, its backbone, its model of single frames, the frames of its window, and the paper."""

    family: str
    backbone: str
    baseline: str | None = None
    num_frames: int = 1
    printed: Printed = Printed()

    def model(self, interval: int) -> Any:
        """A new model of this package."""
        if self.family in ("cffm", "segformer"):
            way = "stream" if self.family == "cffm" else "one"
            return Task("cffm", self.backbone.replace("_", "-"), num_labels=NUM_LABELS).model(way)
        config = THEMaskConfig(
            backbone_config=BACKBONES[self.backbone](), num_frames=self.num_frames, num_labels=NUM_LABELS
        )
        if self.family != "mpvss":
            return THEMaskForVideoSemanticSegmentation(config)
        return MPVSSForVideoSemanticSegmentation(
            MPVSSConfig(segmenter_config=config, key_frame_interval=interval, num_labels=NUM_LABELS)
        )

    @property
    def has_official_way(self) -> bool:
        """Whether the released code computes more than ours."""
        return self.family in ("mask2former", "mpvss")

    def official_segmenter(self) -> Any:
        """A new Mask2Former of Transformers, which computes what the released one does."""
        config = Mask2FormerConfig(backbone_config=BACKBONES[self.backbone]())
        return PerFrameForVideoSemanticSegmentation(PerFrameConfig(segmenter_config=config, num_labels=NUM_LABELS))


# Parameters, operations and frames per second of Mask2Former and of MPVSS with each backbone.
TABLE_1 = {
    "r50": (Printed(44.0, 110.6, 19.4), Printed(84.1, 38.9, 33.93)),
    "r101": (Printed(63.0, 141.3, 16.90), Printed(103.1, 45.1, 32.38)),
    "swin_t": (Printed(47.4, 114.4, 17.13), Printed(114.0, 39.7, 32.86)),
    "swin_s": (Printed(68.9, 152.2, 14.52), Printed(108.0, 47.3, 30.61)),
    "swin_b": (Printed(107.1, 223.5, 11.45), Printed(147.0, 61.5, 27.38)),
    "swin_l": (Printed(215.1, 402.7, 8.41), Printed(255.4, 97.3, 23.22)),
    "mit_b1": (Printed(33.0), Printed()),
}
ENTRIES = {f"mask2former_{name}": Entry("mask2former", name, printed=alone) for name, (alone, _) in TABLE_1.items()}
ENTRIES |= {
    f"mpvss_{name}": Entry("mpvss", name, f"mask2former_{name}", printed=printed)
    for name, (_, printed) in TABLE_1.items()
}
ENTRIES |= {
    "themask_mit_b1_t1": Entry("themask", "mit_b1", "mask2former_mit_b1", printed=Printed(33.0)),
    "themask_mit_b1_t2": Entry("themask", "mit_b1", "mask2former_mit_b1", 2),
    "themask_mit_b1_t4": Entry("themask", "mit_b1", "mask2former_mit_b1", 4),
    "segformer_mit_b1": Entry("segformer", "mit_b1", printed=Printed(13.8, fps=58.7)),
    "cffm_mit_b1": Entry("cffm", "mit_b1", "segformer_mit_b1", printed=Printed(15.5, fps=29.8)),
}

# Operations for every element of the output by kind of operator, whichever library or version computes it
# (`native_layer_norm`, `_native_batch_norm_legit_no_training`, `cudnn_batch_norm`, `grid_sampler_2d`, ...).
PER_ELEMENT = {"layer_norm": 5, "group_norm": 5, "batch_norm": 2, "upsample_bilinear2d": 4, "grid_sampler": 4}

# The formulas of torch take a multiplication with its addition for two.
OPERATIONS_OF_TORCH = 2

# Operators that are more than copies, sums and functions of single elements.
MULTIPLIES = re.compile(
    r"mm($|_)|mv($|_)|(mat|m)mul|dot|outer|einsum|addr|(^|_)ger($|_)|cdist|fft|lstm|gru|rnn"
    r"|conv(?!ert)|attention|linear|cubic|sampler|norm(?!al)|linalg"
)


class FvcoreCounter(TorchDispatchMode):
    """Counts `operations` by the rules of fvcore; an operator that multiplies and has no rule is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = rule_of(func)
        if rule is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if rule is not None:
            self.operations += rule(*args, **kwargs, out_val=result)
        elif func.namespace not in ("aten", "prim", "prims") or MULTIPLIES.search(func._schema.name.split("::")[1]):
            raise NotImplementedError(f"Operator {func} must have a rule to be counted. Add one to `PER_ELEMENT`.")
        return result


def rule_of(func: Any) -> Callable[..., float] | None:
    """Operations of a call from its arguments and `out_val`, its result; `None` without a rule."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return lambda *args, **kwargs: flop_registry[packet](*args, **kwargs) / OPERATIONS_OF_TORCH
    name = func._schema.name.split("::")[1]
    if "backward" in name:
        return None
    for kind, count in PER_ELEMENT.items():
        if kind in name:
            return lambda *_, out_val, count=count, **__: count * first_tensor(out_val).numel()
    return None


def first_tensor(result: Any) -> Tensor:
    """The output of an operator, without statistics."""
    return result if isinstance(result, Tensor) else result[0]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--models", nargs="+", choices=ENTRIES, metavar="MODEL", help=f"of {', '.join(ENTRIES)}")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width (default: 480 853)")
    parser.add_argument("--interval", type=int, default=5, help="from key frame to key frame (default: 5)")
    parser.add_argument("--time", action="store_true", help="measure frames per second too")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Count and time the models; their costs by name."""
    size = (options.size[0], options.size[1])
    results = {}
    for name in options.models or ENTRIES:
        results[name] = costs_of(name, size, options.interval)
        if options.time and ENTRIES[name].baseline is not None:
            results[name]["fps"] = measure_fps(name, size, options.interval)
        yield results
    print(table({name: row_of(name, result) for name, result in results.items()}))


def costs_of(name: str, size: tuple[int, int] = SIZE, interval: int = 5) -> dict[str, Any]:
    """Exact costs of a model.

    Args:
        name (`str`): One of `ENTRIES`.
        size (`tuple[int, int]`, *optional*): Height and width of frames.
        interval (`int`, *optional*): From key frame to key frame.

    Returns:
        `params_millions`, see [`count_parameters`]; `gigaflops` and, where the released code computes more,
        `official_gigaflops`: the `frames` of the stream, their `mean`, and its `ratio` to the model of single frames;
        `paper`, the numbers printed there.
    """
    entry = ENTRIES[name]
    gigaflops = count_gigaflops(name, size, interval)
    alone = count_gigaflops(entry.baseline or name, size, interval)
    means = {way: statistics.mean(frames) for way, frames in gigaflops.items()}
    return {
        "params_millions": count_parameters(on_meta(lambda: entry.model(interval))),
        **{
            way: {"mean": means[way], "ratio": means[way] / statistics.mean(alone[way]), "frames": frames}
            for way, frames in gigaflops.items()
        },
        "paper": vars(entry.printed),
    }


def count_parameters(model: nn.Module) -> dict[str, float]:
    """Millions of parameters: `total`, and `flow` of an MPVSS' flow module."""
    # Transformers' Swin has a norm that its backbone does not use.
    sizes = {name: each.numel() for name, each in model.named_parameters() if ".swin.layernorm." not in name}
    flow = sum(size for name, size in sizes.items() if name.startswith("flow."))
    return {"total": sum(sizes.values()) / 1e6, "flow": flow / 1e6}


@cache
@torch.inference_mode()
def count_gigaflops(name: str, size: tuple[int, int], interval: int) -> dict[str, list[float]]:
    """Giga-operations of every frame of a stream: `gigaflops` and, if there is another way, `official_gigaflops`."""
    entry = ENTRIES[name]
    model = on_meta(lambda: entry.model(interval))
    frame = torch.empty(1, 1, 3, *padded(size), device="meta")
    state = model.initial_state(entry.num_frames, 1)
    ours, official = [], []
    if entry.has_official_way:
        _, official_segmentation = counted(on_meta(entry.official_segmenter), frame)
    num_counted = 1 if entry.baseline is None else NUM_FRAMES  # single frames all cost the same
    for _ in range(num_counted):
        (outputs, state), step = counted(model.streaming_step, frame, state)
        _, scoring = counted(outputs.frame_scores, 0, 0)
        ours.append(step + scoring)
        if entry.has_official_way:
            is_key_frame = outputs.get("is_key_frame")
            _, scoring = counted(official_scores, outputs, size)
            is_segmented = is_key_frame is None or is_key_frame.all()
            official.append((official_segmentation if is_segmented else step) + scoring)
    ways = {"gigaflops": ours, "official_gigaflops": official}
    return {way: frames * (NUM_FRAMES // num_counted) for way, frames in ways.items() if frames}


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the network's input."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    return height, width


def official_scores(outputs: Any, size: tuple[int, int]) -> Tensor:
    """Class scores `(1, num_labels, height, width)` of a frame from enlarged masks, as released."""
    scores = outputs.frame_scores(0, 0, padded(size))[None, :, : size[0], : size[1]]
    return nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)


def counted(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of `work`, and its giga-operations by the rules of fvcore."""
    with FvcoreCounter() as counter:
        result = work(*arguments)
    return result, counter.operations / 1e9


@torch.inference_mode()
def measure_fps(name: str, size: tuple[int, int], interval: int) -> dict[str, float]:
    """Frames per second of a model and of its model of single frames (`alone`), and their `ratio`."""
    torch.manual_seed(0)
    entries = {"model": ENTRIES[name], "alone": ENTRIES[str(ENTRIES[name].baseline)]}
    frames = torch.randn(NUM_FRAMES, 1, 1, 3, *padded(size))

    def stream(entry: Entry) -> Iterator[Tensor]:
        model = entry.model(interval).eval()
        state = model.initial_state(entry.num_frames, 1)
        model.streaming_step(frames[0], state)  # to warm up
        yield frames
        for frame in frames:
            outputs, state = model.streaming_step(frame, state)
            yield outputs.frame_scores(0, 0)

    streams = {way: stream(entry) for way, entry in entries.items()}
    for each in streams.values():
        next(each)
    seconds = take_turns({way: partial(next, each) for way, each in streams.items()}, NUM_FRAMES, warm_up=0)
    rounds = {
        way: [sum(times[first : first + interval]) for first in range(0, NUM_FRAMES, interval)]
        for way, times in seconds.items()
    }
    speeds = {way: NUM_FRAMES / sum(times) for way, times in seconds.items()}
    return {**speeds, "ratio": paired_ratio(rounds["alone"], rounds["model"])}


def row_of(name: str, result: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a model by column of the table."""
    baseline, printed = ENTRIES[name].baseline, ENTRIES[name].printed
    alone = ENTRIES[baseline].printed.gigaflops if baseline else None
    row = {"params M": result["params_millions"]["total"], "flow M": result["params_millions"]["flow"] or None}
    for way, title in (("gigaflops", "GFLOPs"), ("official_gigaflops", "official")):
        costs = result.get(way, {})
        row |= {title: costs.get("mean"), f"{title} max": max(costs.get("frames", []), default=None)}
        row |= {f"{title} ratio": costs.get("ratio")}
    fps = result.get("fps", {})
    row |= {"FPS": fps.get("model"), "FPS alone": fps.get("alone"), "FPS ratio": fps.get("ratio")}
    ratio = printed.gigaflops / alone if printed.gigaflops and alone else None
    return (
        row
        | {
            f"paper {title}": value
            for title, value in zip(("params", "GFLOPs", "FPS"), vars(printed).values(), strict=True)
        }
        | {"paper ratio": ratio}
    )

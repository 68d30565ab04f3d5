#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Print parameters, operations and speed of every family as MPVSS reports them (Weng et al., NeurIPS 2023, Table 1).

    python scripts/count_costs.py [--json costs.json]
    python scripts/count_costs.py --models mpvss_r50 mpvss_swin_l --time

A stream of 15 frames of 480x853, padded to 480x864, is labelled frame by frame with 124 classes, up to the class
scores. Weights are random.

params    millions of all parameters and of those of the flow; a norm of Transformers' Swin that nothing uses is left
          out
GFLOPs    giga-operations per frame as this package computes, with class scores at stride 4: the mean over the stream,
          its first frames and its key frames included; the most that a frame takes; and the mean's ratio to the model
          that takes every frame by itself, with the same backbone: Mask2Former, beside CFFM SegFormer
official  likewise as the released codes of Mask2Former and MPVSS compute: the masks of all layers at stride 4, for
          which key frames are counted with Transformers' Mask2Former, and masks as large as the frame before they
          become class scores
FPS       with `--time`: frames per second on the CPU, with one thread, of the model and of the one of single frames,
          and their ratio. The two take turns frame by frame; the times from one key frame to the next make one ratio,
          of which the median is printed
paper     what the papers print: millions of parameters, GFLOPs and their ratio, frames per second on their GPUs
          (SegFormer and CFFM: Sun et al., CVPR 2022; Mask2Former and THE-Mask with MiT: An et al., BMVC 2023). The
          114.0 million of MPVSS with Swin-T are a misprint: its released code has 87.5

Operations are counted on tensors without content, exactly, by the rules of fvcore, which the paper goes by. A
multiplication with its addition is one. Besides products and convolutions, every element counts 5 that a layer or
group norm makes, 2 of a batch norm, and 4 of bilinear resizing or sampling: the samples of deformable attention count,
their weighted sum does not. Softmax, activations, sums and gathers are free, and so is what turns class scores into
label maps.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig, SwinConfig, logging

from benchmark_streaming import Task, paired_ratio
from transformers_themask import (
    MiTConfig,
    MPVSSConfig,
    MPVSSForVideoSemanticSegmentation,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
    THEMaskConfig,
    THEMaskForVideoSemanticSegmentation,
)

SIZE, SIZE_DIVISOR = (480, 853), 32
NUM_FRAMES, NUM_LABELS = 15, 124
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def resnet(blocks: int) -> PreTrainedConfig:
    """A ResNet with `blocks` blocks in its third stage."""
    return ResNetConfig(depths=[3, 4, blocks, 3], out_features=STAGES)


def swin(width: int, blocks: int, heads: int, window: int) -> PreTrainedConfig:
    """A Swin with `blocks` blocks in its third stage and `heads` heads in its first."""
    heads_of_stages = [heads * 2**stage for stage in range(len(STAGES))]
    return SwinConfig(
        embed_dim=width,
        depths=[2, 2, blocks, 2],
        num_heads=heads_of_stages,
        window_size=window,
        out_features=STAGES,
    )


# Made anew for every model, which may write into its own.
BACKBONES: dict[str, Callable[[], PreTrainedConfig]] = {
    "r50": lambda: resnet(6),
    "r101": lambda: resnet(23),
    "swin_t": lambda: swin(96, 6, 3, 7),
    "swin_s": lambda: swin(96, 18, 3, 7),
    "swin_b": lambda: swin(128, 18, 4, 12),
    "swin_l": lambda: swin(192, 18, 6, 12),
    "mit_b1": lambda: MiTConfig.from_size("mit-b1"),
}


@dataclass(frozen=True)
class Printed:
    """What a paper prints: millions of parameters, giga-operations per frame, frames per second."""

    params: float | None = None
    gigaflops: float | None = None
    fps: float | None = None


@dataclass(frozen=True)
class Entry:
    """A row of the table: a family, its backbone, the row of single frames, the frames of a window, and the paper."""

    family: str
    backbone: str
    baseline: str | None = None
    num_frames: int = 1
    printed: Printed | None = None

    @property
    def has_official_way(self) -> bool:
        """Whether the released code computes more."""
        return self.family in ("mask2former", "mpvss")

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

    def official_mask2former(self) -> Any:
        """A new Mask2Former of Transformers, which computes what the released one does."""
        config = Mask2FormerConfig(backbone_config=BACKBONES[self.backbone]())
        return PerFrameForVideoSemanticSegmentation(PerFrameConfig(segmenter_config=config, num_labels=NUM_LABELS))


ENTRIES = {
    "mask2former_r50": Entry("mask2former", "r50", printed=Printed(44.0, 110.6, 19.4)),
    "mpvss_r50": Entry("mpvss", "r50", "mask2former_r50", printed=Printed(84.1, 38.9, 33.93)),
    "mask2former_r101": Entry("mask2former", "r101", printed=Printed(63.0, 141.3, 16.90)),
    "mpvss_r101": Entry("mpvss", "r101", "mask2former_r101", printed=Printed(103.1, 45.1, 32.38)),
    "mask2former_swin_t": Entry("mask2former", "swin_t", printed=Printed(47.4, 114.4, 17.13)),
    "mpvss_swin_t": Entry("mpvss", "swin_t", "mask2former_swin_t", printed=Printed(114.0, 39.7, 32.86)),
    "mask2former_swin_s": Entry("mask2former", "swin_s", printed=Printed(68.9, 152.2, 14.52)),
    "mpvss_swin_s": Entry("mpvss", "swin_s", "mask2former_swin_s", printed=Printed(108.0, 47.3, 30.61)),
    "mask2former_swin_b": Entry("mask2former", "swin_b", printed=Printed(107.1, 223.5, 11.45)),
    "mpvss_swin_b": Entry("mpvss", "swin_b", "mask2former_swin_b", printed=Printed(147.0, 61.5, 27.38)),
    "mask2former_swin_l": Entry("mask2former", "swin_l", printed=Printed(215.1, 402.7, 8.41)),
    "mpvss_swin_l": Entry("mpvss", "swin_l", "mask2former_swin_l", printed=Printed(255.4, 97.3, 23.22)),
    "mask2former_mit_b1": Entry("mask2former", "mit_b1", printed=Printed(33.0)),
    "mpvss_mit_b1": Entry("mpvss", "mit_b1", "mask2former_mit_b1"),
    "themask_mit_b1_t1": Entry("themask", "mit_b1", "mask2former_mit_b1", printed=Printed(33.0)),
    "themask_mit_b1_t2": Entry("themask", "mit_b1", "mask2former_mit_b1", 2),
    "themask_mit_b1_t4": Entry("themask", "mit_b1", "mask2former_mit_b1", 4),
    "segformer_mit_b1": Entry("segformer", "mit_b1", printed=Printed(13.8, fps=58.7)),
    "cffm_mit_b1": Entry("cffm", "mit_b1", "segformer_mit_b1", printed=Printed(15.5, fps=29.8)),
}


# What the operators of a kind cost per element that they put out, whichever library or version computes them
# (`native_layer_norm`, `_native_batch_norm_legit_no_training`, `cudnn_batch_norm`, `grid_sampler_2d`, ...).
PER_ELEMENT = {"layer_norm": 5, "group_norm": 5, "batch_norm": 2, "upsample_bilinear2d": 4, "grid_sampler": 4}

# The formulas of torch take a multiplication with its addition for two.
OPERATIONS_OF_TORCH = 2

# Names of operators that are more than copies, sums and functions of single elements.
MULTIPLIES = re.compile(
    r"mm($|_)|mv($|_)|(mat|m)mul|dot|outer|einsum|addr|(^|_)ger($|_)|cdist|fft|lstm|gru|rnn"
    r"|conv(?!ert)|attention|linear|cubic|sampler|norm(?!al)|linalg"
)


class OperationCounter(TorchDispatchMode):
    """Counts the operations of the block in `operations`; an operator that multiplies and has no rule is an error."""

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
    """Operations of a call, given its arguments and `out_val`, its result; None if the operator has no rule."""
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
    """The output of an operator, without the statistics that it may return beside."""
    return result if isinstance(result, Tensor) else result[0]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=ENTRIES, metavar="MODEL", help=f"of {', '.join(ENTRIES)}")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width (default: 480 853)")
    parser.add_argument("--interval", type=int, default=5, help="from key frame to key frame (default: 5)")
    parser.add_argument("--time", action="store_true", help="measure frames per second too")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    logging.set_verbosity_error()  # Transformers expects its Mask2Former with a Swin
    torch.set_num_threads(1)
    size = (options.size[0], options.size[1])
    results = {}
    for name in options.models or ENTRIES:
        results[name] = costs_of(name, size, options.interval)
        if options.time and ENTRIES[name].baseline is not None:
            results[name]["fps"] = measure_fps(name, size, options.interval)
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def costs_of(name: str, size: tuple[int, int] = SIZE, interval: int = 5) -> dict[str, Any]:
    """What a model costs, without doing its work.

    Args:
        name (`str`): One of `ENTRIES`.
        size (`tuple[int, int]`, *optional*): Height and width of frames.
        interval (`int`, *optional*): From key frame to key frame.

    Returns:
        `params_millions`, see [`count_parameters`]; `gigaflops` and, where the released code computes more,
        `official_gigaflops`: the `frames` of the stream, their `mean`, and its `ratio` to the model of single frames;
        `paper`, what is printed there.
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
        "paper": None if entry.printed is None else vars(entry.printed),
    }


def on_meta(make: Callable[[], Any]) -> Any:
    """A new model without content."""
    with torch.device("meta"):
        model = make()
    # Some parameters are made with `torch.Tensor(...)`, on the CPU all the same.
    return model.eval().requires_grad_(False).to("meta")


def count_parameters(model: nn.Module) -> dict[str, float]:
    """Millions of parameters: `total`, and `flow` of an MPVSS' flow module."""
    # Transformers' Swin has a norm that its backbone does not use.
    sizes = {name: each.numel() for name, each in model.named_parameters() if ".swin.layernorm." not in name}
    flow = sum(size for name, size in sizes.items() if name.startswith("flow."))
    return {"total": sum(sizes.values()) / 1e6, "flow": flow / 1e6}


@cache
@torch.inference_mode()
def count_gigaflops(name: str, size: tuple[int, int], interval: int) -> dict[str, list[float]]:
    """Giga-operations of every frame of a stream: `gigaflops` and, if there is another, the `official_gigaflops`."""
    entry = ENTRIES[name]
    model = on_meta(lambda: entry.model(interval))
    frame = torch.empty(1, 1, 3, *padded(size), device="meta")
    state = model.initial_state(entry.num_frames, 1)
    ours, official = [], []
    if entry.has_official_way:
        segmenter = on_meta(entry.official_mask2former)
        _, official_segmentation = counted(segmenter, frame)
    num_counted = 1 if entry.baseline is None else NUM_FRAMES  # single frames are all alike
    for _ in range(num_counted):
        (outputs, state), step = counted(model.streaming_step, frame, state)
        _, scoring = counted(outputs.frame_scores, 0, 0)
        ours.append(step + scoring)
        if entry.has_official_way:
            is_key_frame = entry.family == "mask2former" or outputs.is_key_frame.all()
            _, scoring = counted(official_scores, outputs, size)
            official.append((official_segmentation if is_key_frame else step) + scoring)
    ways = {"gigaflops": ours, "official_gigaflops": official}
    return {way: frames * (NUM_FRAMES // num_counted) for way, frames in ways.items() if frames}


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the network's input."""
    height, width = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size)
    return height, width


def official_scores(outputs: Any, size: tuple[int, int]) -> Tensor:
    """The class scores `(1, num_labels, height, width)` of a frame the released way: masks are enlarged first."""
    scores = outputs.frame_scores(0, 0, padded(size))[None, :, : size[0], : size[1]]
    return nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)


def counted(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What `work` returns for these arguments, and its giga-operations by the rules of fvcore."""
    with OperationCounter() as counter:
        result = work(*arguments)
    return result, counter.operations / 1e9


@torch.inference_mode()
def measure_fps(name: str, size: tuple[int, int], interval: int) -> dict[str, float]:
    """Frames per second of a model, of the one of single frames (`alone`), and their `ratio`, side by side."""
    torch.manual_seed(0)
    entries = {"model": ENTRIES[name], "alone": ENTRIES[str(ENTRIES[name].baseline)]}
    models = {way: entry.model(interval).eval() for way, entry in entries.items()}
    frames = torch.randn(NUM_FRAMES, 1, 1, 3, *padded(size))
    states = {way: models[way].initial_state(entry.num_frames, 1) for way, entry in entries.items()}
    for model, state in zip(models.values(), states.values(), strict=True):  # to warm up
        model.streaming_step(frames[0], state)
    seconds: dict[str, list[float]] = {way: [] for way in models}
    for frame in frames:
        for way, model in models.items():
            start = time.perf_counter()
            outputs, states[way] = model.streaming_step(frame, states[way])
            outputs.frame_scores(0, 0)
            seconds[way].append(time.perf_counter() - start)
    rounds = {
        way: [sum(times[first : first + interval]) for first in range(0, NUM_FRAMES, interval)]
        for way, times in seconds.items()
    }
    speeds = {way: NUM_FRAMES / sum(times) for way, times in seconds.items()}
    return {**speeds, "ratio": paired_ratio(rounds["alone"], rounds["model"])}


COLUMNS = {
    "params M": ("total", "flow"),
    "GFLOPs": ("mean", "most", "ratio"),
    "official": ("mean", "most", "ratio"),
    "FPS": ("model", "alone", "ratio"),
    "paper": ("params M", "GFLOPs", "ratio", "FPS"),
}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as lines with aligned columns; what there is not is a dash."""
    width = max(len(name) for name in ENTRIES) + 2
    groups = "".join(group.center(9 * len(columns) + 2) for group, columns in COLUMNS.items())
    titles = "".join("  " + "".join(f"{column:>9}" for column in columns) for columns in COLUMNS.values())
    lines = [f"{'':{width + 8}}{groups}".rstrip(), f"{'model':{width}}{'backbone':8}{titles}"]
    for name, result in results.items():
        cells = "".join("  " + "".join(f"{cell_of(cell):>9}" for cell in group) for group in cells_of(name, result))
        lines.append(f"{name:{width}}{ENTRIES[name].backbone:8}{cells}")
    return "\n".join(lines)


def cells_of(name: str, result: dict[str, Any]) -> list[list[float | None]]:
    """The numbers of a row, one list for each group of `COLUMNS`."""
    operations: list[list[float | None]] = [[None] * 3, [None] * 3]
    for columns, way in zip(operations, ("gigaflops", "official_gigaflops"), strict=True):
        if way in result:
            columns[:] = result[way]["mean"], max(result[way]["frames"]), result[way]["ratio"]
    fps = result.get("fps", {})
    alone = ENTRIES[ENTRIES[name].baseline or name].printed
    printed, printed_alone = (each or Printed() for each in (ENTRIES[name].printed, alone))
    has_ratio = ENTRIES[name].baseline and printed.gigaflops and printed_alone.gigaflops
    ratio = printed.gigaflops / printed_alone.gigaflops if has_ratio else None  # type: ignore[operator]
    return [
        list(result["params_millions"].values()),
        *operations,
        [fps.get(column) for column in COLUMNS["FPS"]],
        [printed.params, printed.gigaflops, ratio, printed.fps],
    ]


def cell_of(number: float | None) -> str:
    """A number with three digits behind the point below ten, and with two above."""
    return "-" if not number else f"{number:.3f}" if number < 10 else f"{number:.2f}"


if __name__ == "__main__":
    main()

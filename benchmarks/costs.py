# SPDX-License-Identifier: Apache-2.0
"""Print parameters, operations and speed of the published configurations of every family."""

import argparse
import re
import statistics
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from transformers_themask.registry import families, family_of

from .measuring import summarise_pairs, table, take_turns
from .models import NUM_LABELS, on_meta

SIZE, SIZE_DIVISOR = (480, 853), 32
NUM_FRAMES = 15


PUBLISHED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())["cases"]
CASES = {name: case for name, case in PUBLISHED.items() if case["family"] in {family.name for family in families()}}


def model_of(case: dict[str, Any], interval: int) -> Any:
    """A new model of a case."""
    family = family_of(case["family"])
    assert family is not None
    fields = {**deepcopy(case["config"]), "num_labels": NUM_LABELS}
    if hasattr(family.config, "key_frame_interval"):
        fields["key_frame_interval"] = interval
    return family.model(family.config(**fields))


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
    parser.add_argument("--models", nargs="+", choices=CASES, metavar="MODEL", help=f"of {', '.join(CASES)}")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="height and width (default: 480 853)")
    parser.add_argument("--interval", type=int, default=5, help="from key frame to key frame (default: 5)")
    parser.add_argument("--time", action="store_true", help="measure frames per second too")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Count and time the models; their costs by name."""
    size = (options.size[0], options.size[1])
    results = {}
    for name in options.models or CASES:
        results[name] = costs_of(name, size, options.interval)
        if options.time and "alone" in CASES[name]:
            results[name]["fps"] = measure_fps(name, size, options.interval)
        yield results
    print(table({name: row_of(name, result) for name, result in results.items()}))


def costs_of(name: str, size: tuple[int, int] = SIZE, interval: int = 5) -> dict[str, Any]:
    """Exact costs of one of `CASES`: the `frames` of the stream, their `mean`, its `ratio` to single frames' model."""
    case = CASES[name]
    gigaflops = count_gigaflops(name, size, interval)
    alone = count_gigaflops(case.get("alone", name), size, interval)
    means = {way: statistics.mean(frames) for way, frames in gigaflops.items()}
    return {
        "params_millions": count_parameters(on_meta(lambda: model_of(case, interval))),
        **{
            way: {"mean": means[way], "ratio": means[way] / statistics.mean(alone[way]), "frames": frames}
            for way, frames in gigaflops.items()
        },
        "paper": case.get("paper", {}),
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
    case = CASES[name]
    model = on_meta(lambda: model_of(case, interval))
    frame = torch.empty(1, 1, 3, *padded(size), device="meta")
    state = model.initial_state(model.config.num_frames, 1)
    ours, official = [], []
    if "official" in case:
        segmenter = on_meta(lambda: model_of(case["official"], interval))
        _, official_segmentation = counted(segmenter, frame)
    num_counted = NUM_FRAMES if "alone" in case else 1  # single frames all cost the same
    for _ in range(num_counted):
        (outputs, state), step = counted(model.clip_step, frame, state)
        _, scoring = counted(outputs.frame_scores, 0, 0)
        ours.append(step + scoring)
        if "official" in case:
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
    cases = {"model": CASES[name], "alone": CASES[CASES[name]["alone"]]}
    frames = torch.randn(NUM_FRAMES, 1, 1, 3, *padded(size))

    def stream(case: dict[str, Any]) -> Iterator[Tensor]:
        model = model_of(case, interval).eval()
        state = model.initial_state(model.config.num_frames, 1)
        model.clip_step(frames[0], state)  # to warm up
        yield frames
        for frame in frames:
            outputs, state = model.clip_step(frame, state)
            yield outputs.frame_scores(0, 0)

    streams = {way: stream(case) for way, case in cases.items()}
    for each in streams.values():
        next(each)
    seconds = take_turns({way: partial(next, each) for way, each in streams.items()}, NUM_FRAMES, warm_up=0)
    rounds = {
        way: [sum(times[first : first + interval]) for first in range(0, NUM_FRAMES, interval)]
        for way, times in seconds.items()
    }
    speeds = {way: NUM_FRAMES / sum(times) for way, times in seconds.items()}
    return {**speeds, "ratio": summarise_pairs(rounds["alone"], rounds["model"])["value"]}


def row_of(name: str, result: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a model by column of the table."""
    printed, alone = result["paper"], CASES.get(CASES[name].get("alone"), {}).get("paper", {})
    row = {"params M": result["params_millions"]["total"], "flow M": result["params_millions"]["flow"] or None}
    for way, title in (("gigaflops", "GFLOPs"), ("official_gigaflops", "official")):
        costs = result.get(way, {})
        row |= {title: costs.get("mean"), f"{title} max": max(costs.get("frames", []), default=None)}
        row |= {f"{title} ratio": costs.get("ratio")}
    fps = result.get("fps", {})
    row |= {"FPS": fps.get("model"), "FPS alone": fps.get("alone"), "FPS ratio": fps.get("ratio")}
    row |= {f"paper {column}": printed.get(column) for column in ("params", "GFLOPs", "FPS")}
    has_ratio = "GFLOPs" in printed and "GFLOPs" in alone
    return row | {"paper ratio": printed["GFLOPs"] / alone["GFLOPs"] if has_ratio else None}

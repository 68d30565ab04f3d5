# SPDX-License-Identifier: Apache-2.0
"""Parts of a model that are exported: modules from frames to scores with named tensors as inputs and outputs."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from transformers_themask.models.streaming import STEPWISE_MODES

Tensors = dict[str, Tensor]
Size = tuple[int, int]
Shape = list[int | str]

FRAMES = "pixel_values_videos"
SCORES = "segmentation_scores"
STATE_IN, STATE_OUT = "state_in", "state_out"
# The free axis of a state that holds more frames from step to step.
FRAMES_KEPT = "frames_kept"

# A graph for frames of any size takes multiples of this.
SIZE_DIVISOR = 32
# Two sizes that differ in area and proportions show which axes depend on which length.
PROBED_SIZES = ((64, 96), (128, 64))


class ClipModule(nn.Module):
    """Scores of all frames of clips."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values_videos: Tensor) -> Tensors:
        """Map `(batch, num_frames, 3, height, width)` to `(batch, num_frames, num_labels, height / 4, width / 4)`."""
        return {SCORES: self.model(pixel_values_videos=pixel_values_videos).scores()}


class StepModule(nn.Module):
    """Scores of the newest frame, and the next state, by one of a model's `step_kinds`; `state` is an example."""

    def __init__(self, model: PreTrainedModel, kind: str, state: Any):
        super().__init__()
        self.model = model
        self.kind = kind
        self.example = state

    def forward(self, pixel_values_videos: Tensor, state: Tensors | None = None) -> Tensors:
        """Map frames `(batch, 1, 3, height, width)` and the tensors of the state to scores and those of the next."""
        before = with_tensors(self.example, iter((state or {}).values()))
        outputs, next_state = self.model.step_of_kind(self.kind, pixel_values_videos, before)
        return {SCORES: outputs.scores(), **named_tensors(next_state, STATE_OUT)}


@dataclass(frozen=True)
class Graph:
    """One graph to export: the streaming modes that it serves, what is traced, and examples of inputs and outputs.

    `step_kind` is empty for a model with one kind of step; a `size` of `None` is free. Shapes name the free axes.
    """

    name: str
    modes: list[str]
    step_kind: str
    module: Any
    size: Size | None
    num_frames: int
    inputs: Tensors
    outputs: Tensors
    input_shapes: dict[str, Shape]
    output_shapes: dict[str, Shape]

    @property
    def has_state(self) -> bool:
        """Whether a step's state goes in and out."""
        return len(self.inputs) > 1

    @property
    def stream_length(self) -> int:
        """Number of frames after which the state holds no frame of the start of the stream."""
        return 1 + max(self.num_frames, *(tensor.shape[1] for tensor in self.inputs.values()))

    def before_the_first_frame(self, state: Any) -> Tensors:
        """The tensors of a stream's first state, given a later one: zeros, without frames where these accumulate."""
        return {
            name: torch.zeros_like(tensor[:, :0] if self.input_shapes[name][1] == FRAMES_KEPT else tensor)
            for name, tensor in named_tensors(state, STATE_IN).items()
        }


def graphs_of(model: PreTrainedModel, modes: list[str], num_frames: int, size: Size | None) -> list[Graph]:
    """The graphs for some `stream_modes` of a model: one for clips, and one for each kind of step that has a state."""
    sizes = [size] if size else list(PROBED_SIZES)
    states = {mode: [state_after_a_frame(model, num_frames, at) for at in sizes] for mode in modes}
    with_state = [mode for mode in modes if mode in STEPWISE_MODES and named_tensors(states[mode][0], STATE_IN)]
    # Without a state, a step is a clip of one frame.
    without_state = [mode for mode in modes if mode not in with_state]
    graphs = []
    if without_state:
        inputs = [{FRAMES: random_frames(2, 2, at)} for at in sizes]
        graphs.append(described("clip", without_state, ClipModule(model), sizes, num_frames, inputs))
    # A full state, so that the trace drops a frame; an axis of length 1 would become a constant.
    num_kept = max(2, num_frames - 1)
    for mode in with_state:
        growing = growing_tensors(model, num_frames, sizes[0])
        by_kind = {"": states[mode]} if len(model.step_kinds) == 1 else states_by_kind(model, num_frames, sizes)
        for kind, before in by_kind.items():
            inputs = [
                {FRAMES: random_frames(2, 1, at)}
                | {
                    name: value.repeat_interleave(num_kept if name in growing else 1, 1)
                    for name, value in kept.items()
                }
                for at, kept in zip(sizes, (named_tensors(state, STATE_IN) for state in before), strict=True)
            ]
            module = StepModule(model, kind, before[0])
            name = f"{mode}_{kind}" if kind else mode
            graphs.append(described(name, [mode], module, sizes, num_frames, inputs, growing))
    return graphs


@torch.no_grad()
def growing_tensors(model: PreTrainedModel, num_frames: int, size: Size) -> set[str]:
    """Names of the tensors of a model's state that accumulate frames on axis 1."""
    state = model.initial_state(max(3, num_frames), 1)  # its window is not full after one frame
    lengths: dict[str, set[int]] = {}
    for frame in [None, *random_frames(1, 2, size).split(1, dim=1)]:
        if frame is not None:
            state = model.clip_step(frame, state)[1]
        for name, tensor in named_tensors(state, STATE_IN).items():
            lengths.setdefault(name, set()).add(tensor.shape[1])
    return {name for name, seen in lengths.items() if len(seen) > 1}


@torch.no_grad()
def state_after_a_frame(model: PreTrainedModel, num_frames: int, size: Size) -> Any:
    """The state of two streams after their first frame."""
    return model.clip_step(random_frames(2, 1, size), model.initial_state(num_frames, 1))[1]


@torch.no_grad()
def states_by_kind(model: PreTrainedModel, num_frames: int, sizes: list[Size]) -> dict[str, list[Any]]:
    """The state of two streams before the first step of each kind, at each of some sizes."""
    states: dict[str, list[Any]] = {}
    for index, size in enumerate(sizes):
        state = model.initial_state(num_frames, 1)
        for frame in random_frames(2, len(model.step_kinds), size).split(1, dim=1):
            kept = states.setdefault(model.step_kind(state), [])
            if len(kept) == index:
                kept.append(state)
            state = model.clip_step(frame, state)[1]
    return states


def random_frames(batch_size: int, num_frames: int, size: Size) -> Tensor:
    """Noise of the shape of normalised frames."""
    generator = torch.Generator().manual_seed(batch_size)
    return torch.randn(batch_size, num_frames, 3, *size, generator=generator)


@torch.no_grad()
def described(
    name: str,
    modes: list[str],
    module: nn.Module,
    sizes: list[Size],
    num_frames: int,
    inputs: list[Tensors],
    growing: Collection[str] = (),
) -> Graph:
    """A [`Graph`], whose free axes follow from its inputs at each of some sizes; those `growing` accumulate frames."""
    module.eval()
    outputs = [call_module(module, tensors) for tensors in inputs]

    def shapes(examples: list[Tensors]) -> dict[str, Shape]:
        return {
            key: shape_of(
                key, [tensors[key] for tensors in examples], sizes, key.replace(STATE_OUT, STATE_IN) in growing
            )
            for key in examples[0]
        }

    return Graph(
        name=name if len(sizes) > 1 else f"{name}_{sizes[0][0]}x{sizes[0][1]}",
        modes=modes,
        step_kind=getattr(module, "kind", ""),
        module=module,
        size=None if len(sizes) > 1 else sizes[0],
        num_frames=num_frames,
        inputs=inputs[0],
        outputs=outputs[0],
        input_shapes=shapes(inputs),
        output_shapes=shapes(outputs),
    )


def call_module(module: Any, tensors: Tensors) -> Tensors:
    """Call a graph's module, or an exported one, with all inputs by their names."""
    return module(**nested(tensors))


def nested(named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a graph's module: the frames, and the tensors of the state as one."""
    state = {name: value for name, value in named.items() if name != FRAMES}
    return {FRAMES: named[FRAMES], **({"state": state} if state else {})}


def shape_of(name: str, tensors: list[Tensor], sizes: list[Size], is_growing: bool) -> Shape:
    """Axes of a tensor, from its values at some sizes: a length, or a name or formula where it is free."""
    num_frames = tensors[0].shape[1]
    frames: int | str = num_frames
    if is_growing:
        frames = FRAMES_KEPT
    elif name in (FRAMES, SCORES) and num_frames > 1:
        frames = "num_frames"
    lengths = zip(*(tensor.shape[2:] for tensor in tensors), strict=True)
    return ["batch", frames, *(axis_of(name, list(axis), sizes) for axis in lengths)]


def axis_of(name: str, lengths: list[int], sizes: list[Size]) -> int | str:
    """The length of an axis, from its values at some sizes: constant, or a fraction of the height, width or area."""
    if len(set(lengths)) == 1:
        return lengths[0]
    measures = {
        "height": [height for height, _ in sizes],
        "width": [width for _, width in sizes],
        "height*width": [height * width for height, width in sizes],
    }
    for measure, values in measures.items():
        if len({value / length for value, length in zip(values, lengths, strict=True)}) == 1:
            return measure if values == lengths else f"{measure}/{values[0] // lengths[0]}"
    raise ValueError(f"`size` must be given for a model whose {name} has an axis of {lengths} for frames of {sizes}.")


def named_tensors(state: Any, name: str) -> Tensors:
    """The tensors in a state of nested tuples, each named by its path."""
    if isinstance(state, Tensor):
        return {name: state}
    tensors: Tensors = {}
    if isinstance(state, tuple):
        for part, value in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
            tensors |= named_tensors(value, f"{name}_{part}")
    return tensors


def with_tensors(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The same state with other tensors, in the order of `named_tensors`."""
    if isinstance(state, Tensor):
        return next(tensors)
    if not isinstance(state, tuple):
        return state
    parts = [with_tensors(part, tensors) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)

# SPDX-License-Identifier: Apache-2.0
"""Comparison of exported graphs with the model."""

from collections.abc import Iterator

import torch

from .formats import Runner
from .graphs import (
    FRAMES,
    PROBED_SIZES,
    SCORES,
    STATE_IN,
    STATE_OUT,
    Graph,
    Size,
    Tensors,
    call_module,
    named_tensors,
    random_frames,
)

TOLERANCE = 1e-3

# Number of steps of a stream that include every kind.
NUM_STEPS = 4


def largest_difference(graph: Graph, run: Runner) -> float:
    """The largest difference of scores between a graph and its exported file; see [`difference`].

    Clips have one frame and one more than the model's; streams run from their first frame until all frames in the
    state have been replaced. All are compared alone and in a batch, and at two sizes where sizes are free.
    """
    compare = stream_differences if graph.has_state else clip_differences
    if graph.step_kind:
        compare = step_differences
    sizes = [graph.size, graph.size] if graph.size else list(PROBED_SIZES)
    return max(
        difference
        for batch_size, size in zip((1, 2), sizes, strict=True)
        for difference in compare(graph, run, batch_size, size)
    )


@torch.no_grad()
def clip_differences(graph: Graph, run: Runner, batch_size: int, size: Size) -> Iterator[float]:
    """Differences for a short and a long clip."""
    for num_frames in (1, graph.num_frames + 1):
        inputs = {FRAMES: random_frames(batch_size, num_frames, size)}
        yield difference(call_module(graph.module, inputs), run(inputs))


@torch.no_grad()
def stream_differences(graph: Graph, run: Runner, batch_size: int, size: Size) -> Iterator[float]:
    """Differences for the frames of a stream; each side keeps its own state."""
    model = graph.module.model
    state, tensors = model.initial_state(graph.num_frames, 1), None
    for frame in random_frames(batch_size, graph.stream_length, size).split(1, dim=1):
        outputs, state = model.clip_step(frame, state)
        if tensors is None:
            tensors = graph.before_the_first_frame(state)
        results = run({FRAMES: frame, **tensors})
        tensors = {name.replace(STATE_OUT, STATE_IN): value for name, value in results.items() if name != SCORES}
        yield difference({SCORES: outputs.scores()}, results)


@torch.no_grad()
def step_differences(graph: Graph, run: Runner, batch_size: int, size: Size) -> Iterator[float]:
    """Differences, of the next state too, for the first steps of one kind in a stream of the model."""
    model = graph.module.model
    state = model.initial_state(graph.num_frames, 1)
    for frame in random_frames(batch_size, NUM_STEPS, size).split(1, dim=1):
        is_of_kind = model.step_kind(state) == graph.step_kind
        inputs = {FRAMES: frame, **named_tensors(state, STATE_IN)}
        outputs, state = model.clip_step(frame, state)
        if is_of_kind:
            results = run({name: inputs[name] for name in graph.inputs})
            for name, tensor in {SCORES: outputs.scores(), **named_tensors(state, STATE_OUT)}.items():
                yield difference({SCORES: tensor}, {SCORES: results[name]})


def difference(expected: Tensors, results: Tensors) -> float:
    """The largest difference between scores, as a share of the largest score where that is above 1, as logits are."""
    scores = expected[SCORES]
    return float((scores - results[SCORES]).abs().max() / scores.abs().max().clamp(min=1))

# SPDX-License-Identifier: Apache-2.0
"""Deformable attention is Transformers', from less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from benchmarks.measuring import peak_memory
from tiny import random_clips, tiny_model
from transformers_themask.models import deformable_attention as module
from transformers_themask.models.deformable_attention import DeformableAttention, deformable_attention, sampling_grid

SHAPES = {
    "of_a_frame": [(2, 3), (4, 6), (8, 12)],
    "odd": [(3, 5), (7, 9), (13, 18)],
    "wider_below": [(2, 9), (9, 2)],
    "one_cell": [(1, 1)],
    "one_row_or_column": [(1, 4), (5, 1), (1, 1)],
}
DISTANCES = {"inside": 0.5, "around": 3.0, "far_outside": 1e6}


def random_inputs(shapes, dtype=torch.float64, batch_size=2, num_queries=29, num_heads=3, channels=4, distance=3.0):
    """Values, shapes, locations within `distance` levels of the centre, and weights of either sign."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(batch_size, *shape, generator=generator, dtype=dtype) * 2 - 1

    per_query = (num_queries, num_heads, len(shapes), 4)
    values = random(sum(height * width for height, width in shapes), num_heads, channels)
    return values, shapes, 0.5 + distance * random(*per_query, 2), random(*per_query)


def at_cells_and_borders(shapes, dtype=torch.float64):
    """Inputs whose locations are centres and borders of cells, up to two cells outside.

    The place where a level begins to be seen is left out: the slopes on its sides differ, and both are right.
    """
    values, _, locations, weights = random_inputs(shapes, dtype, batch_size=1, num_queries=400)
    generator = torch.Generator().manual_seed(1)
    halves = [torch.randint(0, 1000, locations.shape[:-1], generator=generator) for _ in range(2)]
    for level, (height, width) in enumerate(shapes):
        for axis, length in enumerate((width, height)):
            places = halves[axis][:, :, :, level] % (2 * length + 4)
            locations[:, :, :, level, :, axis] = places.to(dtype) / (2 * length)
    return values, shapes, locations, weights


def outputs_and_gradients(function, values, shapes, locations, weights):
    leaves = [x.clone().requires_grad_() for x in (values, locations, weights)]
    outputs = function(leaves[0], shapes, *leaves[1:])
    factors = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    return [outputs, *torch.autograd.grad((outputs * factors).sum(), leaves)]


def assert_equal(results, expected, tolerance):
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients_equal_transformers(shapes, distance):
    inputs = random_inputs(shapes, distance=distance)
    expected = outputs_and_gradients(multi_scale_deformable_attention, *inputs)
    assert_equal(outputs_and_gradients(deformable_attention, *inputs), expected, 1e-10)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_float32_outputs_equal_transformers_up_to_rounding(shapes):
    inputs = random_inputs(shapes, torch.float32, distance=0.6)
    assert_equal([deformable_attention(*inputs)], [multi_scale_deformable_attention(*inputs)], 1e-5)


@pytest.mark.parametrize("shapes", [[(2, 4), (4, 8), (8, 16)], [(1, 1)], [(1, 2), (4, 1)]], ids=str)
def test_locations_on_centres_and_borders_of_cells_equal_transformers(shapes):
    """Where a sample has a kink: powers of two, of which a position is exact in both forms."""
    inputs = at_cells_and_borders(shapes)
    expected = outputs_and_gradients(multi_scale_deformable_attention, *inputs)
    assert_equal(outputs_and_gradients(deformable_attention, *inputs), expected, 1e-10)


def test_gradients_are_differences_of_the_outputs():
    values, shapes, locations, weights = random_inputs([(2, 3), (3, 5)], num_queries=3, num_heads=2, channels=2)
    leaves = [x.requires_grad_() for x in (values, locations, weights)]
    assert torch.autograd.gradcheck(lambda values, *rest: deformable_attention(values, shapes, *rest), leaves)


def test_chunks_of_queries_do_not_change_the_outputs(monkeypatch):
    inputs = random_inputs(SHAPES["odd"])
    expected = outputs_and_gradients(deformable_attention, *inputs)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 7)
    assert_equal(outputs_and_gradients(deformable_attention, *inputs), expected, 1e-12)


def test_nan_location_affects_its_query_only():
    inputs = random_inputs(SHAPES["odd"])
    expected = deformable_attention(*inputs)
    inputs[2][1, 5, 2, 0, 3, 1] = float("nan")
    outputs = deformable_attention(*inputs).unflatten(-1, (3, -1))
    assert outputs[1, 5, 2].isnan().all()
    outputs[1, 5, 2] = expected.unflatten(-1, (3, -1))[1, 5, 2]
    assert torch.equal(outputs.flatten(2), expected)


@pytest.mark.parametrize("fields", [{"batch_size": 0}, {"num_queries": 0}], ids=str)
def test_empty_batch_or_no_queries_give_empty_outputs(fields):
    inputs = random_inputs(SHAPES["odd"], **fields)
    assert deformable_attention(*inputs).shape == multi_scale_deformable_attention(*inputs).shape


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiles_without_a_graph_break(training):
    inputs = random_inputs(SHAPES["odd"])
    torch._dynamo.reset()
    compiled = torch.compile(deformable_attention, fullgraph=True, backend="aot_eager")
    if training:
        expected = outputs_and_gradients(deformable_attention, *inputs)
        assert_equal(outputs_and_gradients(compiled, *inputs), expected, 1e-12)
    else:
        assert_equal([compiled(*inputs)], [deformable_attention(*inputs)], 1e-12)


def operations(function):
    """Names of the operations that are not views."""

    class Recorder(TorchDispatchMode):
        names = []

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if not operation.is_view:
                self.names.append(operation.overloadpacket.__name__)
            return operation(*args, **kwargs or {})

    with Recorder() as recorder:
        function()
    return recorder.names


def test_exported_graphs_and_other_devices_have_transformers_form():
    inputs = random_inputs(SHAPES["odd"])

    class Attention(torch.nn.Module):
        def forward(self, values, locations, weights):
            return deformable_attention(values, SHAPES["odd"], locations, weights)

    exported = torch.export.export(Attention(), (inputs[0], *inputs[2:]), strict=False)
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any("grid_sampler" in target for target in targets) and not any("bag" in target for target in targets)
    elsewhere = [x if isinstance(x, list) else x.to("meta") for x in inputs]
    assert "grid_sampler_2d" in operations(lambda: deformable_attention(*elsewhere))


def attention_on(device, sizes):
    """An attention, and what its `attn` is given there, for a batch of two with levels of some sizes."""
    attention, given = DeformableAttention(16, num_heads=4, n_levels=3, n_points=2).to(device), []
    attention.attn.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    num_cells = sum(height * width for height, width in sizes)
    states, positions = (torch.randn(*shape, 16, device=device) for shape in ((2, num_cells), (num_cells,)))
    outputs = attention(states, positions, sampling_grid(sizes, 4, 2, states))
    assert outputs.shape == states.shape
    return given


def test_other_devices_have_the_module_that_a_kernel_can_take_the_place_of():
    """Transformers' own, with the arguments that Deformable DETR gives it."""
    assert attention_on("cpu", SHAPES["odd"]) == []
    [(values, table, shapes, starts, locations, weights, _)] = attention_on("meta", SHAPES["odd"])
    assert shapes == SHAPES["odd"] and table.shape == (3, 2) and starts.shape == (3,)
    assert {tensor.device.type for tensor in (values, table, starts, locations, weights)} == {"meta"}
    num_cells = sum(height * width for height, width in shapes)
    assert values.shape == (2, num_cells, 4, 4)
    assert locations.shape == (2, num_cells, 4, 3, 2, 2) and weights.shape == (2, num_cells, 4, 3, 2)


def test_kernels_are_told_where_the_levels_are():
    inputs, shapes = random_inputs(SHAPES["odd"]), SHAPES["odd"]
    grid = sampling_grid(shapes, 4, 2, inputs[0])
    assert grid.shape_table.tolist() == [list(shape) for shape in shapes] and grid.shape_table.dtype == torch.int64
    assert grid.level_starts.tolist() == [sum(h * w for h, w in shapes[:level]) for level in range(3)]
    attended = MultiScaleDeformableAttention()(
        inputs[0], grid.shape_table, shapes, grid.level_starts, inputs[2], inputs[3], 64
    )
    assert_equal([deformable_attention(*inputs)], [attended], 1e-10)


def test_a_block_of_queries_is_one_gather(monkeypatch):
    inputs = random_inputs(SHAPES["odd"])
    names = operations(lambda: deformable_attention(*inputs))
    assert names.count("_embedding_bag_forward_only") == 2  # a batch of two
    one_block = len(names)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 10)  # three of 29 queries
    names = operations(lambda: deformable_attention(*inputs))
    assert names.count("_embedding_bag_forward_only") == 6 and len(names) < 3 * one_block


def peak(function):
    """The most memory in bytes that a call holds at a time, as the allocator counts it."""
    function()  # what is made once
    return peak_memory(function)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_sixth_of_the_memory_is_enough_and_a_third_in_training(training):
    """Of frames of 480x864 pixels, with fewer heads."""
    shapes = [(15, 27), (30, 54), (60, 108)]
    inputs = random_inputs(shapes, torch.float32, batch_size=1, num_queries=8505, num_heads=2, channels=32)

    def peak_of(function):
        if training:
            return peak(lambda: outputs_and_gradients(function, *inputs))
        return peak(lambda: function(*inputs))

    share = peak_of(deformable_attention) / peak_of(multi_scale_deformable_attention)
    assert share <= (1 / 3 if training else 1 / 6)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_frames_go_through_the_pixel_level_one_by_one_in_inference(training):
    model = tiny_model().train(training)
    pixel_level = model.model.pixel_level_module
    lengths = []
    pixel_level.decoder.register_forward_hook(lambda _, inputs, __: lengths.append(len(inputs[0][0])))
    frames = random_clips(batch_size=1, num_frames=3)[0][0]
    with torch.no_grad():
        maps, mask_features = pixel_level(frames)
        assert lengths == ([3] if training else [1, 1, 1])
        if not training:
            alone = [pixel_level(frame[None]) for frame in frames]
            torch.testing.assert_close(mask_features, torch.cat([features for _, features in alone]), rtol=0, atol=0)
            for level, level_map in enumerate(maps):
                torch.testing.assert_close(level_map, torch.cat([one[level] for one, _ in alone]), rtol=0, atol=0)


def test_several_frames_need_little_more_memory_than_one():
    """Namely what is returned of them, and that of one frame on its way there."""
    pixel_level = tiny_model().model.pixel_level_module
    frames = torch.randn(4, 3, 128, 192)
    with torch.no_grad():
        returned = sum(x.nbytes for x in (lambda maps, features: [*maps, features])(*pixel_level(frames)))
        assert peak(lambda: pixel_level(frames)) <= peak(lambda: pixel_level(frames[:1])) + 1.25 * returned

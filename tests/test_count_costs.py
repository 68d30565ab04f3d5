# SPDX-License-Identifier: Apache-2.0
"""What the families cost, counted on tensors without content: exact, and the same on every machine."""

import statistics

import pytest
import torch
from torch import nn

from benchmarks import costs, measuring
from benchmarks.models import on_meta
from goldens import json_file

NAMES = {"r50": "R50", "r101": "R101", "swin_t": "Swin-T", "swin_s": "Swin-S", "swin_b": "Swin-B", "swin_l": "Swin-L"}


def test_operations_are_counted_by_the_rules_of_fvcore():
    """A multiplication with its addition is one; norms and bilinear sampling count by the element."""
    places, sampled = 6 * 10, 3 * 5
    pixels = torch.empty(2, 4, 6, 10, device="meta")
    grid = torch.empty(2, 3, 5, 2, device="meta")
    works = {
        lambda: nn.Conv2d(4, 8, 3, padding=1, device="meta")(pixels): 2 * places * 8 * 4 * 9,
        lambda: nn.Linear(10, 7, device="meta")(pixels): 2 * 4 * 6 * 10 * 7,
        lambda: nn.LayerNorm(10, device="meta")(pixels): 5 * 2 * 4 * places,
        lambda: nn.GroupNorm(2, 4, device="meta")(pixels): 5 * 2 * 4 * places,
        lambda: nn.BatchNorm2d(4, device="meta").eval()(pixels): 2 * 2 * 4 * places,
        lambda: nn.functional.interpolate(pixels, (9, 9), mode="bilinear"): 4 * 2 * 4 * 81,
        lambda: nn.functional.grid_sample(pixels, grid, align_corners=False): 4 * 2 * 4 * sampled,
        lambda: pixels.softmax(-1).relu() + pixels: 0,
    }
    for is_inference in (True, False):
        with torch.inference_mode(is_inference):
            for work, expected in works.items():
                assert costs.counted(work)[1] * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize("name", ["native_layer_norm", "native_group_norm", "grid_sampler_2d", "upsample_bilinear2d"])
def test_operators_are_counted_under_each_of_their_names(name):
    assert costs.rule_of(getattr(torch.ops.aten, name).default) is not None


@pytest.mark.parametrize(
    "name", ["native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm"]
)
def test_every_batch_norm_is_counted(name):
    rule = costs.rule_of(getattr(torch.ops.aten, name).default)
    pixels, statistics_of_channels = torch.empty(2, 4, 6, 10), torch.empty(4)
    assert rule(pixels, out_val=(pixels, statistics_of_channels, statistics_of_channels)) == 2 * pixels.numel()


def test_an_operator_without_a_rule_that_multiplies_is_an_error():
    vector, matrix = torch.ones(4), torch.ones(4, 4)
    library = torch.library.Library("themask_tests", "FRAGMENT")
    library.define("scaled(Tensor x) -> Tensor")
    library.impl("scaled", lambda x: 2 * x, "CompositeExplicitAutograd")
    for work in (
        lambda: vector.dot(vector),
        lambda: matrix.mv(vector),
        lambda: torch.cdist(matrix, matrix),
        lambda: torch.fft.fft(vector),
        lambda: torch.ops.themask_tests.scaled(vector),
    ):
        with torch.inference_mode(), pytest.raises(NotImplementedError, match="must have a rule"):
            costs.counted(work)


@pytest.mark.parametrize(
    "size, interval, num_frames", [((480, 853), 5, 15), pytest.param((64, 90), 2, 3, marks=pytest.mark.nightly)]
)
def test_a_stream_costs_its_key_frames_and_the_frames_between(monkeypatch, size, interval, num_frames):
    monkeypatch.setattr(costs, "NUM_FRAMES", num_frames)
    stream = costs.costs_of("mpvss_r50", size, interval)
    alone = costs.costs_of("mask2former_r50", size, interval)
    num_keys = len(range(0, num_frames, interval))
    for way in ("gigaflops", "official_gigaflops"):
        key_frame, between = stream[way]["frames"][:2]
        is_key = [index % interval == 0 for index in range(num_frames)]
        assert stream[way]["frames"] == [key_frame if each else between for each in is_key]
        assert alone[way]["frames"] == [key_frame] * num_frames and between < key_frame
        expected = (num_keys * key_frame + (num_frames - num_keys) * between) / num_frames
        assert stream[way]["mean"] == pytest.approx(expected)
        assert stream[way]["ratio"] == pytest.approx(expected / key_frame)
    assert stream["official_gigaflops"]["mean"] > stream["gigaflops"]["mean"]


@pytest.mark.parametrize(
    "backbone, bound, printed",
    [("r50", 0.40, (110.6, 38.9)), pytest.param("swin_l", 0.26, (402.7, 97.3), marks=pytest.mark.nightly)],
)
def test_propagation_saves_what_the_paper_says(backbone, bound, printed):
    """Table 1, at its size and interval; within 1 % the released way."""
    stream = costs.costs_of(f"mpvss_{backbone}")
    key_frame, mean = stream["official_gigaflops"]["frames"][0], stream["official_gigaflops"]["mean"]
    assert (key_frame, mean) == pytest.approx(printed, rel=0.01)
    assert stream["gigaflops"]["ratio"] <= bound and stream["official_gigaflops"]["ratio"] <= bound


@pytest.mark.golden
@pytest.mark.parametrize("backbone", NAMES)
def test_parameters_are_those_of_the_released_code(golden_dir, backbone):
    recorded = json_file("params_flops", golden_dir / "mpvss")["params_millions"][NAMES[backbone]]
    for family, total in (("mpvss", "total_M"), ("mask2former", "segmenter_M")):
        case = costs.CASES[f"{family}_{backbone}"]
        counts = costs.count_parameters(on_meta(lambda case=case: costs.model_of(case, 5)))
        assert counts["total"] == pytest.approx(recorded[total], abs=1e-9)
        assert counts["flow"] == pytest.approx(recorded["motion_M"] if family == "mpvss" else 0, abs=1e-9)


@pytest.mark.golden
def test_operations_are_those_of_the_released_code(golden_dir):
    """As fvcore counted them there."""
    recorded = json_file("params_flops", golden_dir / "mpvss")["gflops_480x853_fvcore"]
    frames = costs.costs_of("mpvss_r50")["official_gigaflops"]["frames"]
    assert frames[0] == pytest.approx(recorded["key_frame_R50"], rel=0.01)
    assert frames[1] == pytest.approx(recorded["non_key_frame"], rel=0.01)
    assert statistics.mean(frames) == pytest.approx(recorded["average_interval5_15frames_R50"], rel=0.01)


def test_the_table_is_aligned_and_shows_the_paper_beside():
    results = {name: costs.costs_of(name) for name in ("mpvss_r50", "mask2former_r50")}
    results["mpvss_r50"]["fps"] = {"model": 3.0, "alone": 1.5, "ratio": 2.0}
    rows = {name: costs.row_of(name, result) for name, result in results.items()}
    titles, *lines = measuring.table(rows).splitlines()
    assert len({len(line) for line in [titles, *lines]}) == 1 == len({len(row) for row in rows.values()})
    first, second = (line.split() for line in lines)
    assert first[0] == "mpvss_r50" and second[0] == "mask2former_r50"
    assert first[-7:] == ["3.000", "1.500", "2.000", "84.10", "38.90", "33.93", "0.352"]
    assert second[-7:] == ["-", "-", "-", "44.00", "110.60", "19.40", "-"]

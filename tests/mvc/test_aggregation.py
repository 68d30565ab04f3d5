# SPDX-License-Identifier: Apache-2.0
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goldens import manifest, tensors
from transformers_themask.data.synthetic import render_synthetic_video
from transformers_themask.metrics.structural_similarity import structural_similarity
from transformers_themask.mvc import aggregation
from transformers_themask.mvc.aggregation import (
    aggregate_video,
    carry_labels,
    consistency_settings,
    optical_flow,
    select_by_consistency,
    temporal_consistencies,
    temporal_consistency,
)
from transformers_themask.mvc.label_folders import ResultVideo, single_video
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.videos.frames_in_memory import FramesInMemory

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mvc"
# Names of the recordings for each direction.
RECORDED = {"forward": ("flow_fwd", "neg_fwd"), "backward": ("flow_bwd", "bwd")}
both_directions = pytest.mark.parametrize("direction", RECORDED)


@pytest.fixture(scope="module")
def recorded():
    return {name: tensor.numpy() for name, tensor in tensors("aggregation", FIXTURES).items()}


@pytest.fixture(scope="module")
def film():
    """Six frames of a moving scene and the class indices of their pixels, far apart."""
    frames, ids = render_synthetic_video(0, 6, (48, 64))
    return frames, 15 * ids


@both_directions
def test_flow_is_that_of_opencv_with_the_values_of_its_tutorial(recorded, direction):
    frames = recorded["frames"]
    for index in range(3):
        ends = frames[index : index + 2] if direction == "forward" else frames[index : index + 2][::-1]
        flow = optical_flow(*ends)
        assert flow.dtype == np.float32
        np.testing.assert_allclose(flow, recorded[f"{RECORDED[direction][0]}.{index}"], rtol=0, atol=1e-3)


@both_directions
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_are_carried_where_opencv_carries_them(recorded, direction, dtype):
    flow_name, name = RECORDED[direction]
    for model in "AB":
        for index in range(3):
            label_map = recorded[f"labels.{model}"][index].astype(dtype)
            carried = carry_labels(label_map, recorded[f"{flow_name}.{index}"], direction)
            assert carried.dtype == dtype
            assert (carried != recorded[f"warped.{model}.{name}.{index}"]).mean() <= 0.005


@both_directions
def test_labels_follow_a_known_motion_and_borders_are_repeated(direction):
    label_map = np.arange(20, dtype=np.uint8).reshape(4, 5)
    motion = np.broadcast_to(np.float32([2, -1]), (4, 5, 2))  # two to the right, one up
    carried = carry_labels(label_map, motion if direction == "forward" else -motion, direction)
    rows, columns = [1, 2, 3, 3], [0, 0, 0, 1, 2]
    np.testing.assert_array_equal(carried, label_map[np.ix_(rows, columns)])


@both_directions
def test_scores_of_the_recorded_results_and_the_winner(recorded, direction):
    expected = manifest(FIXTURES)["aggregation"]
    frames = zip(recorded["frames"], zip(recorded["labels.A"], recorded["labels.B"], strict=True), strict=True)
    winner, scores = select_by_consistency(frames, direction)
    name = RECORDED[direction][1]
    for model, score in zip("AB", scores, strict=True):
        mean = expected["mean"][f"{model}.{name}"]["u8_default_dr255_win7"]
        # The flow, and with it some carried labels, may differ among builds of OpenCV.
        assert score == pytest.approx(mean, abs=5e-3)
        assert temporal_consistency(recorded["frames"], recorded[f"labels.{model}"], direction) == score
    assert "AB"[winner] == expected["winner"][f"{name}/u8_default_dr255_win7"] == "B"


@both_directions
def test_a_video_without_motion_compares_neighbouring_label_maps(direction):
    frames = np.repeat(render_synthetic_video(1, 1, (32, 40))[0], 4, axis=0)
    label_maps = np.random.default_rng(0).integers(0, 124, (4, 32, 40), dtype=np.uint8)
    expected = np.mean([structural_similarity(*label_maps[index : index + 2]) for index in range(3)])
    assert temporal_consistency(frames, label_maps, direction) == pytest.approx(expected, abs=1e-12)


@both_directions
def test_constant_label_maps_are_perfectly_consistent(film, direction):
    frames, _ = film
    assert temporal_consistency(frames, np.full(frames.shape[:3], 77, dtype=np.uint8), direction) == 1.0


def test_one_frame_is_perfectly_consistent(film):
    frames, label_maps = film
    assert temporal_consistency(frames[:1], label_maps[:1]) == 1.0
    assert temporal_consistencies([(frames[0], [label_maps[0], label_maps[1]])]) == [1.0, 1.0]


@both_directions
def test_true_labels_are_more_consistent_than_scrambled_and_noisy_ones(film, direction):
    frames, label_maps = film
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(label_maps.shape) < 0.1, 15 * rng.integers(0, 9, label_maps.shape), label_maps)
    results = [label_maps[[3, 0, 5, 2, 4, 1]], noisy.astype(np.uint8), label_maps]
    winner, scores = select_by_consistency(zip(frames, zip(*results, strict=True), strict=True), direction)
    assert winner == 2 and scores[2] > max(scores[:2]) + 0.05


def test_the_first_of_equal_results_wins(film):
    frames, label_maps = film
    other = label_maps[::-1]
    for results, winner in (((label_maps, label_maps), 0), ((other, label_maps, label_maps), 1)):
        chosen, scores = select_by_consistency(zip(frames, zip(*results, strict=True), strict=True))
        assert chosen == winner and scores[-1] == scores[-2]


def test_pixels_without_a_class_neither_help_nor_hurt(recorded):
    """With no motion: whatever is ignored on one side counts as equal."""
    frames = np.repeat(recorded["frames"][:1], 2, axis=0)
    first, second = recorded["labels.A"][0], recorded["labels.A"][1]
    holes = np.random.default_rng(0).random((2, *first.shape)) < 0.2
    with_holes = np.where(holes, 255, [first, second]).astype(np.uint8)
    filled_first, filled_second = first.copy(), second.copy()
    for place in zip(*np.nonzero(holes[0] | holes[1]), strict=True):
        in_both = holes[0][place] and holes[1][place]
        known = 255 if in_both else second[place] if holes[0][place] else first[place]
        filled_first[place] = filled_second[place] = known
    expected = structural_similarity(filled_first, filled_second)
    assert temporal_consistency(frames, with_holes) == pytest.approx(expected, abs=1e-12)
    assert temporal_consistency(frames, np.where(holes, 255, first).astype(np.uint8)) == 1.0


def test_each_flow_is_estimated_once(film, monkeypatch):
    frames, label_maps = film
    calls = []
    monkeypatch.setattr(
        aggregation, "optical_flow", lambda *ends: calls.append(ends) or np.zeros((48, 64, 2), np.float32)
    )
    temporal_consistencies((frame, [labels] * 5) for frame, labels in zip(frames, label_maps, strict=True))
    assert len(calls) == 5
    for index, ends in enumerate(calls):
        assert np.array_equal(ends, frames[index : index + 2])


@both_directions
def test_two_frames_are_in_memory_however_long_the_video(film, direction):
    frames, label_maps = film
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def streamed():
        nonlocal most
        for index in range(40):
            frame, labels = (maps[index % 6].copy().view(Counted) for maps in (frames, label_maps))
            alive.update((frame, labels))
            most = max(most, len(alive))
            yield frame, [labels]
            del frame, labels

    gc.collect()
    temporal_consistencies(streamed(), direction)
    assert most == 4  # with their label maps


def test_invalid_arguments_of_temporal_consistency_are_rejected(film):
    frames, label_maps = film
    with pytest.raises(ValueError, match=r"A video must have at least one frame. Got none"):
        temporal_consistencies([])
    with pytest.raises(ValueError, match=r"must be equally many. Got no label map 5"):
        temporal_consistency(frames, label_maps[:5])
    with pytest.raises(ValueError, match=r"must be equally many. Got no frame 2"):
        temporal_consistency(frames[:2], label_maps)
    with pytest.raises(ValueError, match=r"`direction` must be one of forward, backward. Got 'sideways'"):
        temporal_consistency(frames, label_maps, "sideways")
    with pytest.raises(ValueError, match=r"`direction` must be one of forward, backward. Got 'sideways'"):
        carry_labels(label_maps[0], np.zeros((48, 64, 2)), "sideways")
    with pytest.raises(ValueError, match=r"All frames of a video must have one size. Got \(40, 64, 3\) after \(48, "):
        optical_flow(frames[0], frames[1][:40])
    with pytest.raises(ValueError, match="A frame must be a PIL image, a uint8 array"):
        optical_flow(frames[0] / 255, frames[1] / 255)
    with pytest.raises(ValueError, match=r"`flow` must have the shape \(47, 64, 2\).* Got \(48, 64, 2\)"):
        temporal_consistency(frames, label_maps[:, 1:])
    with pytest.raises(ValueError, match=r"at least as large as the window, 7x7. Got 6x64"):
        temporal_consistency(frames[:, :6], label_maps[:, :6])


def test_a_missing_opencv_is_named(film, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    frames, label_maps = film
    for call in (lambda: temporal_consistency(frames, label_maps), lambda: consistency_settings("forward")):
        with pytest.raises(ValueError, match=r"OpenCV must be installed .*`pip install .*\[aggregation\]`"):
            call()
    assert temporal_consistency(frames[:1], label_maps[:1]) == 1.0  # needs no flow


def test_the_record_of_settings_has_all_that_decides_scores():
    import cv2

    settings = consistency_settings("backward")
    parameters = {name: settings["flow"][name] for name in manifest(FIXTURES)["farneback"]}
    assert parameters == manifest(FIXTURES)["farneback"]
    assert settings["flow"]["direction"] == "backward"
    assert settings["structural_similarity"] == {"data_range": 255, "window": 7}
    assert settings["versions"]["opencv"] == cv2.__version__


@pytest.mark.parametrize("name", ["", "town/drive"])
def test_the_label_maps_of_the_winner_are_copied(film, tmp_path, name):
    frames, label_maps = film
    video = ResultVideo(name, single_video(FramesInMemory(frames))[0].frames)
    folders, seen = [tmp_path / "scrambled", tmp_path / "smooth"], []
    for folder, maps in zip(folders, (label_maps[[3, 0, 5, 2, 4, 1]], label_maps), strict=True):
        for index, label_map in enumerate(maps):
            write_label_map(label_map, video.label_path(folder, index))
    choice = aggregate_video(video, folders, tmp_path / "out", on_frame=lambda: seen.append("compared"))
    assert seen == ["compared"] * 6
    assert (choice.video, choice.num_frames, choice.chosen) == (name, 6, 1)
    results = [label_maps[[3, 0, 5, 2, 4, 1]], label_maps]
    assert choice.scores == [temporal_consistency(frames, maps) for maps in results]
    copied = sorted((tmp_path / "out" / name).iterdir())
    assert [path.name for path in copied] == [f"{index:08d}.png" for index in range(6)]
    np.testing.assert_array_equal([np.asarray(Image.open(path)) for path in copied], label_maps)

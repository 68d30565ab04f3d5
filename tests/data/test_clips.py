# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from transformers_themask.data.clips import OffsetSampler, PairSampler, frame_sampler
from transformers_themask.models.streaming import evaluation_clips


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_evaluation_clips_equal_the_official_ones_for_videos_of_at_least_one_block(official_facts, num_frames):
    videos = official_facts["test_clips"][str(num_frames)].values()
    complete = [video for video in videos if video["num_frames"] >= (3 * num_frames if num_frames > 1 else 1)]
    assert len(complete) >= 5
    for video in complete:
        assert evaluation_clips(video["num_frames"], num_frames) == video["clips"]


def test_video_shorter_than_one_block_is_all_remainder():
    assert evaluation_clips(5, num_frames=2) == [[0, 1], [2, 3], [4]]
    assert evaluation_clips(7, num_frames=4) == [[0, 1, 2, 3], [4, 5, 6]]
    assert evaluation_clips(1, num_frames=4) == [[0]]


def test_stride_one_gives_contiguous_clips():
    assert evaluation_clips(7, num_frames=3, frame_stride=1) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("frame_stride", [1, 2, 3, 5])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_every_frame_is_evaluated_exactly_once(num_frames, frame_stride):
    for num_video_frames in range(40):
        clips = evaluation_clips(num_video_frames, num_frames, frame_stride)
        assert sorted(index for clip in clips for index in clip) == list(range(num_video_frames))


@pytest.mark.parametrize("official_offsets", ["[0]", "[-3]", "[-9, -6, -3]"])
def test_sampled_clips_equal_the_official_ones(official_facts, official_offsets):
    recorded = official_facts["train_clips"][official_offsets]
    frame_offsets = tuple(int(offset) for offset in official_offsets.strip("[]").split(","))
    frame_offsets = frame_offsets if frame_offsets == (0,) else (*frame_offsets, 0)
    sampler, rng = OffsetSampler(frame_offsets), np.random.default_rng(0)
    sampled = [sampler.draw(recorded["video_frames"], range(recorded["video_frames"]), rng) for _ in range(2000)]
    assert sorted(map(list, set(map(tuple, sampled)))) == recorded["distinct_clips"]


def test_targets_are_labelled_in_both_directions_of_time():
    rng = np.random.default_rng(0)
    sampled = {tuple(OffsetSampler((-9, -6, -3, 0)).draw(30, [19], rng)) for _ in range(50)}
    assert sampled == {(10, 13, 16, 19), (28, 25, 22, 19)}
    sampled = {tuple(OffsetSampler((-3, 0)).draw(12, [1, 2, 10], rng)) for _ in range(200)}
    assert sampled == {(4, 1), (5, 2), (7, 10)}


def test_half_of_the_sampled_clips_run_backwards():
    rng = np.random.default_rng(0)
    clips = [OffsetSampler((-1, 0)).draw(8, range(8), rng) for _ in range(4000)]
    share = np.mean([first > last for first, last in clips])
    assert abs(share - 0.5) < 0.04  # five standard deviations


@pytest.mark.parametrize("offsets", [(), (-3,), (-3, -6, 0), (-3, -3, 0), (0, 3)])
def test_offsets_that_do_not_increase_to_zero_are_rejected(offsets):
    with pytest.raises(ValueError, match="`frame_offsets` must increase strictly and end with 0"):
        OffsetSampler(offsets)


def test_short_video_is_rejected_by_the_sampler():
    with pytest.raises(ValueError, match=r"`num_video_frames` must be at least 10 .* Got 9"):
        OffsetSampler((-9, -6, -3, 0)).draw(9, range(9), np.random.default_rng(0))


def test_clip_length_of_zero_is_rejected():
    with pytest.raises(ValueError, match=r"`num_frames` must be at least 1. Got 0"):
        evaluation_clips(5, 0)


def test_pairs_have_the_distribution_of_two_draws():
    """One frame uniformly, another uniformly around it: each pair can be drawn in two ways."""
    length, reach = 7, 3
    around = [[other for other in range(length) if 0 < abs(other - one) <= reach] for one in range(length)]
    expected = np.zeros((length, length))
    for one, others in enumerate(around):
        for other in others:
            expected[min(one, other), max(one, other)] += 1 / length / len(others)
    sampler, rng, num_draws = PairSampler((-reach, 0)), np.random.default_rng(0), 20000
    counts = np.zeros_like(expected)
    for _ in range(num_draws):
        counts[tuple(sampler.draw(length, range(length), rng))] += 1
    deviation = np.sqrt(expected * (1 - expected) / num_draws)
    assert (np.abs(counts / num_draws - expected) <= 4.5 * deviation).all()


def test_later_frame_of_a_pair_is_labelled():
    sampler, rng = PairSampler((-2, 0)), np.random.default_rng(0)
    pairs = {tuple(sampler.draw(30, [0, 12], rng)) for _ in range(100)}
    assert pairs == {(10, 12), (11, 12)}
    for num_frames, labelled in ((1, [0]), (9, [0]), (9, [])):
        with pytest.raises(ValueError, match=r"`num_video_frames` must be at least 2 .*with a labelled frame"):
            sampler.draw(num_frames, labelled, rng)


def test_samplers_are_found_by_name():
    assert frame_sampler("offsets", [-3, 0]) == OffsetSampler((-3, 0))
    assert frame_sampler("pair", [-10, 0]) == PairSampler((-10, 0))
    with pytest.raises(ValueError, match=r"`clip_sampler` must be one of offsets, pair. Got 'all'"):
        frame_sampler("all", [0])
    with pytest.raises(ValueError, match=r"`frame_offsets` must have two entries .*Got \(-2, -1, 0\)"):
        frame_sampler("pair", [-2, -1, 0])

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from transformers_themask.inference.segment import segment_frames


def label_clip(segmenter, clip):
    """One naive call of the model on one clip."""
    batch = segmenter.processor([list(clip)], return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(pixel_values_videos=batch["pixel_values_videos"])
    (maps,) = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[clip[0].shape[:2]])
    return maps.numpy()


@pytest.mark.parametrize(
    ("num_frames", "frame_stride", "clips"),
    [
        (None, 1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]),
        (1, 1, [[index] for index in range(11)]),
        (2, 3, [[0, 3], [1, 4], [2, 5], [6, 7], [8, 9], [10]]),
        (3, 3, [[0, 3, 6], [1, 4, 7], [2, 5, 8], [9, 10]]),
        (4, 3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]),
    ],
    ids=["model_default", "per_frame", "official_stride", "three_frames", "shorter_than_a_block"],
)
def test_every_frame_gets_the_label_map_of_its_clip_in_order(segmenter, frames, num_frames, frame_stride, clips):
    labelled = list(segment_frames(segmenter.model, segmenter.processor, iter(frames), num_frames, frame_stride))
    assert [index for index, _ in labelled] == list(range(11))
    for clip in clips:
        expected = label_clip(segmenter, frames[clip])
        assert np.array_equal([labelled[index][1] for index in clip], expected)


def test_label_maps_have_the_frames_size_and_differ_from_frame_to_frame(segmenter, frames):
    labelled = segment_frames(segmenter.model, segmenter.processor, frames)
    maps = np.stack([label_map for _, label_map in labelled])
    assert maps.shape == frames.shape[:3] and maps.dtype == np.uint8
    # Guards the comparisons of this file: equal constants would prove nothing.
    assert len(np.unique(maps.reshape(11, -1), axis=0)) == 11 and all(len(np.unique(map_)) > 1 for map_ in maps)


def test_no_more_than_one_block_is_read_ahead(segmenter, frames):
    read = []

    def counted():
        for index, frame in enumerate(frames):
            read.append(index)
            yield frame

    for index, _ in segment_frames(segmenter.model, segmenter.processor, counted(), num_frames=2, frame_stride=2):
        assert len(read) <= min(11, 4 * (index // 4 + 1))


def test_the_caller_keeps_gradients_and_a_training_model_is_put_in_eval_mode(segmenter, frames):
    segmenter.model.train()
    labelled = segment_frames(segmenter.model, segmenter.processor, frames)
    next(labelled)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not segmenter.model.training


def test_no_frames_give_no_label_maps(segmenter):
    assert list(segment_frames(segmenter.model, segmenter.processor, [])) == []


@pytest.mark.parametrize("name", ["num_frames", "frame_stride"])
def test_clips_need_a_frame(segmenter, frames, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Got 0."):
        segment_frames(segmenter.model, segmenter.processor, frames, **{name: 0})


def test_a_frame_of_another_size_is_named(segmenter, frames):
    mixed = [*frames[:5], frames[5][:30]]
    with pytest.raises(ValueError, match=r"size of the first one, 36x50. Got 30x50 for frame 5."):
        list(segment_frames(segmenter.model, segmenter.processor, mixed))

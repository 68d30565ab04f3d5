# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from transformers_themask.data.collator import ClipCollator


def make_item(video_id, width=6, **entries):
    return {
        **entries,
        "pixel_values_videos": torch.rand(2, 3, 4, width),
        "labels": torch.randint(5, (2, 4, width), dtype=torch.uint8),
        "sample_id": ord(video_id),
        "video_id": video_id,
        "frame_names": ["0001", "0004"],
    }


def test_batch_stacks_the_tensors_of_items_in_order():
    items = [make_item("a"), make_item("b"), make_item("c")]
    batch = ClipCollator()(items)
    assert batch.pop("sample_ids") == [ord("a"), ord("b"), ord("c")]
    assert set(batch) == {"pixel_values_videos", "labels"} and batch["labels"].dtype == torch.uint8
    for key, stacked in batch.items():
        assert all(torch.equal(clip, item[key]) for clip, item in zip(stacked, items, strict=True))


def test_batch_stacks_the_parameters_of_device_distortion():
    entries = {"photometric": torch.rand(2, 5), "content_sizes": torch.tensor([3, 2])}
    batch = ClipCollator()([make_item("a", **entries), make_item("b", **entries)])
    assert torch.equal(batch["photometric"], entries["photometric"].expand(2, 2, 5))
    assert batch["content_sizes"].tolist() == [[3, 2], [3, 2]]


def test_items_of_different_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) for video 'c' \(frames 0001, 0004\) .* for video 'a'; set"):
        ClipCollator()([make_item("a"), make_item("b"), make_item("c", width=5)])

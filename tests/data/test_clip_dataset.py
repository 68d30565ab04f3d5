# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transformers_themask import THEMaskVideoProcessor
from transformers_themask.data.clip_dataset import ClipDataset, ClipSampler
from transformers_themask.data.collator import ClipCollator
from transformers_themask.data.transforms import ClipAugmentation
from transformers_themask.data.vspw import load_vspw


@pytest.fixture
def make_dataset(vspw_root, tmp_path, plain_processor):
    def make(augmentation=None, crop_size=None, frame_offsets=(-1, 0), processor=plain_processor, **options):
        rows = load_vspw(vspw_root, "train", cache_dir=tmp_path / "cache")
        options = {"seed": 0, "num_labels": 2, **options}
        return ClipDataset(rows, vspw_root, frame_offsets, processor, augmentation, crop_size, **options)

    return make


def edit_masks(root, edit):
    for path in (root / "data").glob("[ab]/mask/*.png"):
        Image.fromarray(edit(np.array(Image.open(path)))).save(path)


SMALL = ClipAugmentation(base_size=(32, 24), ratio_range=(0.9, 1.6), crop_size=(20, 28), cat_max_ratio=1.0)


def same(first, second):
    return all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def test_frames_labels_and_names_belong_together(make_dataset):
    dataset = make_dataset(frame_offsets=(-2, -1, 0))
    for epoch in range(10):
        item = dataset[0, epoch]
        assert item["video_id"] == "a" and item["pixel_values_videos"].shape == (3, 3, 12, 16)
        # The stand-in processor keeps every second pixel; frame i has red 10 * i and is called 7 + i.
        red = (item["pixel_values_videos"][:, 0].mean((1, 2)) - 1) * 255
        indices = torch.tensor([int(name) - 7 for name in item["frame_names"]])
        assert (red - 10 * indices).abs().max() < 3  # JPEG
        assert abs(int(indices[0]) - int(indices[2])) == 2
        assert torch.equal(item["labels"], torch.arange(16).ge(8).long().expand(3, 12, 16))


def test_labels_follow_the_augmented_frames(make_dataset):
    dataset = make_dataset(dataclasses.replace(SMALL, photometric=False))
    for epoch in range(10):
        item = dataset[0, epoch]
        green = (item["pixel_values_videos"][:, 1] - 1) * 255
        is_clear = ((green - 100).abs() > 70) & (item["labels"] != 255)  # away from the blurred edge
        assert is_clear.float().mean() > 0.5
        assert torch.equal(item["labels"][is_clear], (green > 100).long()[is_clear])


def test_an_item_depends_on_seed_epoch_and_index_only(make_dataset):
    dataset = make_dataset(SMALL, clips_per_video=5)
    first = dataset[3, 2]
    dataset[0, 0]
    assert same(first, make_dataset(SMALL, clips_per_video=5)[3, 2])
    assert not same(first, dataset[3, 1])
    assert not same(first, dataset[5, 2])
    assert not same(first, make_dataset(SMALL, clips_per_video=5, seed=1)[3, 2])
    assert same(dataset[3], dataset[3, 0])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_give_the_same_items_in_every_epoch(make_dataset, num_workers):
    dataset = make_dataset(SMALL, clips_per_video=4)
    sampler = ClipSampler(len(dataset), seed=3)
    options = {"batch_size": 3, "sampler": sampler, "collate_fn": ClipCollator()}
    plain = DataLoader(dataset, **options)
    parallel = DataLoader(dataset, **options, num_workers=num_workers, persistent_workers=True)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected, batches = list(plain), list(parallel)
        assert len(batches) == len(expected) == 3
        assert all(same(batch, other) for batch, other in zip(batches, expected, strict=True))


def test_the_sampler_shuffles_per_epoch_and_carries_the_epoch():
    sampler = ClipSampler(20, seed=1)
    first = list(sampler)
    assert sorted(first) == [(index, 0) for index in range(20)] and first != sorted(first)
    assert list(sampler) == first == list(ClipSampler(20, seed=1))
    sampler.set_epoch(4)
    assert {epoch for _, epoch in sampler} == {4}
    assert [index for index, _ in sampler] != [index for index, _ in first]
    assert [index for index, _ in ClipSampler(20, seed=2)] != [index for index, _ in first]


def test_every_video_gives_its_share_of_clips(make_dataset):
    dataset = make_dataset(clips_per_video=3)
    assert [dataset[index]["video_id"] for index in range(len(dataset))] == ["a", "b"] * 3
    with pytest.raises(IndexError, match=r"between 0 and 5. Got 6"):
        dataset[6]


def test_videos_can_be_drawn_in_proportion_to_their_length(make_dataset):
    dataset = make_dataset(clips_per_video=20, sample_by="frame")
    lengths = {row["video_id"]: row["num_frames"] for row in dataset.rows}
    drawn = [dataset[index]["video_id"] for index in range(sum(lengths.values()))]
    assert {video_id: drawn.count(video_id) for video_id in lengths} == lengths
    with pytest.raises(ValueError, match=r"`sample_by` must be 'video' or 'frame'. Got 'clip'"):
        make_dataset(sample_by="clip")


def test_small_clips_are_padded_after_normalisation(make_dataset):
    item = make_dataset(ClipAugmentation((32, 24), (0.5, 0.5), crop_size=(20, 28), photometric=False))[0]
    pixel_values, labels = item["pixel_values_videos"], item["labels"]
    assert pixel_values.shape == (2, 3, 20, 28) and labels.shape == (2, 20, 28)
    assert (pixel_values[..., :12, :16] >= 1).all() and (labels[..., :12, :16] < 2).all()
    assert (pixel_values[..., 12:, :] == 0).all() and (pixel_values[..., 16:] == 0).all()
    assert (labels[..., 12:, :] == 255).all() and (labels[..., 16:] == 255).all()
    assert make_dataset(crop_size=(13, 16))[0]["labels"].shape == (2, 13, 16)


def test_a_crop_size_below_the_clip_is_refused(make_dataset):
    with pytest.raises(
        ValueError, match=r"`crop_size` must hold every clip. Got \(8, 16\) for a clip of size \(12, 16"
    ):
        make_dataset(crop_size=(8, 16))[0]


def test_a_clip_without_labels_is_replaced_by_another_video(make_dataset, vspw_root):
    for path in (vspw_root / "data" / "a" / "mask").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)
    dataset = make_dataset(clips_per_video=10)
    assert {dataset[index]["video_id"] for index in range(20)} == {"b"}


def test_a_dataset_without_any_label_says_so(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: np.full_like(mask, 255))
    with pytest.raises(ValueError, match=r"Clips must have labelled pixels. Got 50 clips in a row"):
        make_dataset()[0]


def test_short_videos_are_refused_before_any_frame_is_read(make_dataset):
    with pytest.raises(ValueError, match=r"at least 4 frames .* Got 3 in 'b' \(1 videos are too short\); remove them"):
        make_dataset(frame_offsets=(-3, 0))


def test_label_ids_out_of_range_name_the_mask(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: np.where(mask == 2, 254, mask).astype(np.uint8))
    with pytest.raises(
        ValueError, match=r"Mask .*a/mask/000000\d\d.png must hold raw ids from 0 to 2 .* Got 254; correct"
    ):
        make_dataset()[0]


def test_frame_and_mask_sizes_must_agree(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: mask[1:])
    with pytest.raises(
        ValueError, match=r"Mask .*png must have its frame's size .* \(24, 32\). Got \(23, 32\); replace"
    ):
        make_dataset()[0]


def test_all_frames_of_a_video_must_have_one_size(make_dataset, vspw_root):
    for folder in ("origin", "mask"):
        for path in sorted((vspw_root / "data" / "a" / folder).iterdir())[::2]:
            Image.open(path).crop((0, 0, 30, 24)).save(path)
    with pytest.raises(ValueError, match=r"All frames of a video must have one size .* Got \(24, 3\d\)"):
        make_dataset()[0]


def test_a_processor_that_keeps_raw_ids_is_refused(make_dataset, plain_processor):
    plain_processor.do_reduce_labels = False
    with pytest.raises(ValueError, match=r"`processor.do_reduce_labels` must be True"):
        make_dataset()


def test_at_least_one_clip_is_needed(make_dataset, vspw_root, plain_processor):
    with pytest.raises(ValueError, match=r"must give at least one clip. Got 2 videos and 0 clips"):
        make_dataset(clips_per_video=0)
    with pytest.raises(ValueError, match=r"must give at least one clip. Got 0 videos"):
        ClipDataset([], vspw_root, (0,), plain_processor, None, None, 0, 2)


def test_the_video_processor_normalises_and_neither_stretches_nor_resizes_augmented_clips(make_dataset):
    processor = THEMaskVideoProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    augmentation = ClipAugmentation((32, 24), (1.0, 1.0), (20, 28), flip_probability=0, photometric=False)
    item = make_dataset(augmentation, crop_size=(32, 40), processor=processor)[0]
    blue = (0 - 0.406) / 0.225  # ImageNet mean and deviation
    assert item["pixel_values_videos"].shape == (2, 3, 32, 40) and item["labels"].dtype == torch.int64
    assert item["pixel_values_videos"][:, 2, :20, :28].median().item() == pytest.approx(blue, abs=0.1)
    assert (item["labels"][:, 20:] == 255).all() and (item["labels"][:, :, 28:] == 255).all()
    assert set(item["labels"][:, :20, :28].unique().tolist()) == {0, 1}
    assert make_dataset(processor=processor)[0]["labels"].shape == (2, 64, 96)


def test_normalised_and_padded_items_are_the_official_ones(official_tensors, tmp_path):
    for folder, name, image in (
        ("origin", "crop0.frame0", official_tensors["crop0.frame0"][:33, :29, ::-1]),
        ("mask", "crop0.seg0", official_tensors["crop0.seg0"][:33, :29]),
    ):
        (tmp_path / folder).mkdir()
        raw = image if folder == "origin" else np.where(image == 255, 255, image + 1).astype(np.uint8)
        Image.fromarray(np.ascontiguousarray(raw)).save(tmp_path / folder / f"{name}.png")
    row = {"video_id": "v", "num_frames": 1, "frames": ["origin/crop0.frame0.png"], "masks": ["mask/crop0.seg0.png"]}
    unchanged = ClipAugmentation((33, 29), (1.0, 1.0), (40, 40), flip_probability=0, photometric=False)
    num_labels = int(official_tensors["crop0.seg0"][official_tensors["crop0.seg0"] < 255].max()) + 1

    dataset = ClipDataset([row], tmp_path, (0,), THEMaskVideoProcessor(), unchanged, None, 0, num_labels)

    torch.testing.assert_close(
        dataset[0]["pixel_values_videos"], torch.from_numpy(official_tensors["bundle.img"])[0][None]
    )
    assert torch.equal(dataset[0]["labels"], torch.from_numpy(official_tensors["bundle.gt"])[0])

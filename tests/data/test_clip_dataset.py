# SPDX-License-Identifier: Apache-2.0
import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transformers_themask import THEMaskVideoProcessor
from transformers_themask.data import clip_dataset
from transformers_themask.data.clip_dataset import ClipDataset, ClipSampler
from transformers_themask.data.collator import ClipCollator
from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.data.normalization import prepare_on_device
from transformers_themask.data.sources import load_videos
from transformers_themask.data.transforms import ClipAugmentation


@pytest.fixture
def make_dataset(vspw_root, plain_processor):
    def make(
        augmentation=None,
        frame_offsets=(-1, 0),
        processor=plain_processor,
        path_is_kept=lambda path: True,
        **options,
    ):
        rows = load_videos(vspw_root, "train").rows
        rows = [{**row, "masks": [path if path_is_kept(path) else "" for path in row["masks"]]} for row in rows]
        videos = LabelledVideos(rows, vspw_root, ["left", "right"])
        options = {"seed": 0, **options}
        return ClipDataset(videos, frame_offsets, processor, augmentation, **options)

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
        assert torch.equal(item["labels"], torch.arange(16).ge(8).to(torch.uint8).expand(3, 12, 16))


def test_labels_follow_the_augmented_frames(make_dataset):
    dataset = make_dataset(dataclasses.replace(SMALL, photometric=False))
    for epoch in range(10):
        item = dataset[0, epoch]
        green = (item["pixel_values_videos"][:, 1] - 1) * 255
        is_clear = ((green - 100).abs() > 70) & (item["labels"] != 255)  # away from the blurred edge
        assert is_clear.float().mean() > 0.5
        assert torch.equal(item["labels"][is_clear], (green > 100).to(torch.uint8)[is_clear])


def test_item_depends_on_seed_epoch_and_index_only(make_dataset):
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


def test_sampler_shuffles_per_epoch_and_yields_the_epoch():
    sampler = ClipSampler(20, seed=1)
    first = list(sampler)
    assert sorted(first) == [(index, 0) for index in range(20)] and first != sorted(first)
    assert list(sampler) == first == list(ClipSampler(20, seed=1))
    sampler.set_epoch(4)
    assert {epoch for _, epoch in sampler} == {4}
    assert [index for index, _ in sampler] != [index for index, _ in first]
    assert [index for index, _ in ClipSampler(20, seed=2)] != [index for index, _ in first]


def test_every_video_gives_clips_per_video_items(make_dataset):
    dataset = make_dataset(clips_per_video=3)
    assert [dataset[index]["video_id"] for index in range(len(dataset))] == ["a", "b"] * 3
    with pytest.raises(IndexError, match=r"between 0 and 5. Got 6"):
        dataset[6]


def test_videos_can_be_drawn_in_proportion_to_their_length(make_dataset):
    dataset = make_dataset(clips_per_video=20, sample_by="frame")
    lengths = {row["video_id"]: row["num_frames"] for row in dataset.videos.rows}
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


def test_a_clip_without_labels_is_replaced_by_another_video(make_dataset, vspw_root):
    for path in (vspw_root / "data" / "a" / "mask").iterdir():
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(path)
    dataset = make_dataset(clips_per_video=10)
    assert {dataset[index]["video_id"] for index in range(20)} == {"b"}


def only_frame(*indices):
    """Keeps the masks of these frames of every video; the first frame is called 7."""
    return lambda path: int(path[-12:-4]) - 7 in indices


def test_last_frame_of_a_clip_is_labelled_and_others_may_not_be(make_dataset):
    dataset = make_dataset(SMALL, path_is_kept=only_frame(1), clips_per_video=20)
    seen = set()
    for index in range(len(dataset)):
        item = dataset[index]
        seen.add((item["video_id"], *item["frame_names"]))
        assert (item["labels"][0] == 255).all() and (item["labels"][1] != 255).any()
    assert seen == {(video, neighbour, "00000008") for video in "ab" for neighbour in ("00000007", "00000009")}


def test_videos_with_too_few_frames_before_labelled_ones_are_rejected(make_dataset):
    with pytest.raises(ValueError, match=r"at least 3 frames .* Got 3 in 'b', 1 of them labelled \(1 videos"):
        make_dataset(frame_offsets=(-2, 0), path_is_kept=only_frame(1, 3, 4))
    with pytest.raises(ValueError, match=r"Got 5 in 'a', 0 of them labelled \(2 videos"):
        make_dataset(path_is_kept=only_frame())


@pytest.fixture
def warnings(monkeypatch):
    """What the dataset warns of, once each."""
    said = []
    monkeypatch.setattr(clip_dataset.logger, "warning_once", said.append)
    return said


def test_damaged_file_is_warned_about_and_its_clip_replaced(make_dataset, vspw_root, warnings):
    for path in (vspw_root / "data" / "a" / "origin").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert make_dataset()[0]["video_id"] == "b"
    assert re.search(r"Image file .*a/origin/000000\d\d.jpg must be readable", warnings[0])


def test_dataset_of_damaged_files_is_an_error(make_dataset, vspw_root, warnings):
    for path in (vspw_root / "data").glob("*/origin/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(ValueError, match="50 in a row that are damaged or all void"):
        make_dataset()[0]


def test_missing_file_is_an_error(make_dataset, vspw_root):
    dataset = make_dataset()
    for path in (vspw_root / "data" / "a" / "origin").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="a/origin"):
        dataset[0]


def test_sample_ids_are_unique_over_epochs(make_dataset):
    dataset = make_dataset(clips_per_video=3)
    ids = [dataset[index, epoch]["sample_id"] for epoch in range(3) for index in range(len(dataset))]
    assert ids == list(range(18))


def test_augmented_frames_are_normalised_like_the_processor(make_dataset):
    options = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    augmentation = dataclasses.replace(SMALL, photometric=False)
    for switches in ({}, {"do_normalize": False}, {"do_rescale": False, "do_normalize": False}):
        processor = THEMaskVideoProcessor(**options, **switches)
        frames = make_dataset(augmentation, processor=processor, photometric_on="device")[0]["pixel_values_videos"]
        expected = processor(frames, do_resize=False, size_divisor=1, return_tensors="pt")["pixel_values_videos"][0]
        normalised = make_dataset(augmentation, processor=processor)[0]["pixel_values_videos"]
        torch.testing.assert_close(normalised, expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratio_range", [(0.5, 0.5), (0.9, 1.6)])
def test_device_distortion_equals_cpu_distortion(make_dataset, ratio_range):
    augmentation = dataclasses.replace(SMALL, ratio_range=ratio_range)
    processor = THEMaskVideoProcessor(do_normalize=False, rescale_factor=1.0)
    exact, later = (
        make_dataset(augmentation, processor=processor, clips_per_video=4, photometric_on=place)
        for place in ("cpu", "device")
    )
    collate = ClipCollator()
    expected = collate([exact[index] for index in range(8)])
    batch = collate([later[index] for index in range(8)])
    assert batch["pixel_values_videos"].dtype == torch.uint8
    finished = prepare_on_device(batch, processor)
    assert set(finished) == set(expected) and same(prepare_on_device(expected, processor), expected)
    assert torch.equal(finished["labels"], expected["labels"])
    assert finished["sample_ids"] == expected["sample_ids"]
    assert (finished["pixel_values_videos"] - expected["pixel_values_videos"]).abs().max() <= 1


def test_padding_stays_zero_after_device_distortion(make_dataset):
    augmentation = dataclasses.replace(SMALL, ratio_range=(0.5, 0.5))
    dataset = make_dataset(augmentation, processor=THEMaskVideoProcessor(), photometric_on="device")
    finished = prepare_on_device(ClipCollator()([dataset[0], dataset[1]]), dataset.processor)
    pixel_values = finished["pixel_values_videos"]
    assert pixel_values.shape[-2:] == (20, 28) and (pixel_values[..., :12, :16] != 0).all()
    assert (pixel_values[..., 12:, :] == 0).all() and (pixel_values[..., 16:] == 0).all()


def test_unknown_photometric_on_is_rejected(make_dataset):
    with pytest.raises(ValueError, match=r"`photometric_on` must be 'cpu' or 'device'. Got 'gpu'"):
        make_dataset(photometric_on="gpu")


def test_sampler_drops_the_incomplete_last_step():
    sampler = ClipSampler(11, seed=1, clips_per_step=4)
    assert len(sampler) == len(list(sampler)) == 8
    assert list(sampler) == list(ClipSampler(11, seed=1))[:8]
    left_out = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        left_out |= set(range(11)) - {index for index, _ in sampler}
    assert left_out == set(range(11))
    with pytest.raises(ValueError, match=r"between 1 and the 11 clips of an epoch. Got 12; raise `clips_per_video`"):
        ClipSampler(11, clips_per_step=12)


def test_dataset_of_void_masks_is_an_error(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: np.full_like(mask, 255))
    with pytest.raises(ValueError, match=r"Got 50 in a row that are damaged or all void"):
        make_dataset()[0]


def test_short_videos_are_rejected_at_construction(make_dataset):
    with pytest.raises(
        ValueError, match=r"at least 4 frames .* Got 3 in 'b', 3 of them labelled \(1 videos are too short\); remove"
    ):
        make_dataset(frame_offsets=(-3, 0))


def test_label_id_out_of_range_is_rejected(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: np.where(mask == 2, 254, mask).astype(np.uint8))
    with pytest.raises(
        ValueError, match=r"Mask .*a/mask/000000\d\d.png must hold raw ids from 0 to 2 .* Got 254; correct"
    ):
        make_dataset()[0]


def test_mask_of_another_size_than_its_frame_is_rejected(make_dataset, vspw_root):
    edit_masks(vspw_root, lambda mask: mask[1:])
    with pytest.raises(
        ValueError, match=r"Mask .*png must have its frame's size .* \(24, 32\). Got \(23, 32\); replace"
    ):
        make_dataset()[0]


def test_frames_of_different_sizes_in_a_video_are_rejected(make_dataset, vspw_root):
    for folder in ("origin", "mask"):
        for path in sorted((vspw_root / "data" / "a" / folder).iterdir())[::2]:
            Image.open(path).crop((0, 0, 30, 24)).save(path)
    with pytest.raises(ValueError, match=r"All frames of a video must have one size .* Got \(24, 3\d\)"):
        make_dataset()[0]


def test_processor_without_label_reduction_is_rejected(make_dataset, plain_processor):
    plain_processor.do_reduce_labels = False
    with pytest.raises(ValueError, match=r"`processor.do_reduce_labels` must be True"):
        make_dataset()


def test_empty_dataset_is_rejected(make_dataset, vspw_root, plain_processor):
    with pytest.raises(ValueError, match=r"must give at least one clip. Got 2 videos and 0 clips"):
        make_dataset(clips_per_video=0)
    with pytest.raises(ValueError, match=r"must give at least one clip. Got 0 videos"):
        ClipDataset(LabelledVideos([], vspw_root, ["left"]), (0,), plain_processor, None, 0)


def test_video_processor_normalises_but_does_not_resize_augmented_clips(make_dataset):
    processor = THEMaskVideoProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    augmentation = ClipAugmentation((32, 24), (1.0, 1.0), (32, 40), flip_probability=0, photometric=False)
    item = make_dataset(augmentation, processor=processor)[0]
    blue = (0 - 0.406) / 0.225  # ImageNet mean and deviation
    assert item["pixel_values_videos"].shape == (2, 3, 32, 40) and item["labels"].dtype == torch.uint8
    assert item["pixel_values_videos"][:, 2, :24, :32].median().item() == pytest.approx(blue, abs=0.1)
    assert (item["labels"][:, 24:] == 255).all() and (item["labels"][:, :, 32:] == 255).all()
    assert set(item["labels"][:, :24, :32].unique().tolist()) == {0, 1}
    assert make_dataset(processor=processor)[0]["labels"].shape == (2, 64, 96)


def test_normalised_and_padded_items_equal_the_official_ones(official_tensors, tmp_path):
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

    videos = LabelledVideos([row], tmp_path, [str(index) for index in range(num_labels)])
    dataset = ClipDataset(videos, (0,), THEMaskVideoProcessor(), unchanged, 0)

    torch.testing.assert_close(
        dataset[0]["pixel_values_videos"], torch.from_numpy(official_tensors["bundle.img"])[0][None]
    )
    assert torch.equal(dataset[0]["labels"].long(), torch.from_numpy(official_tensors["bundle.gt"])[0])


def test_pair_distances_are_random_and_reproducible(make_dataset):
    dataset = make_dataset(frame_offsets=(-2, 0), clip_sampler="pair")
    items = [dataset[0, epoch] for epoch in range(40)]
    distances = {int(later) - int(earlier) for earlier, later in (item["frame_names"] for item in items)}
    assert distances == {1, 2}
    assert all(same(item, dataset[0, epoch]) for epoch, item in enumerate(items))

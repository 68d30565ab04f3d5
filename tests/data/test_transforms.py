# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from transformers_themask.data.transforms import (
    ClipAugmentation,
    crop_proposals,
    resize_frame,
    resize_mask,
    resized_size,
    select_crop,
)


def coordinate_clip(num_frames=3, height=60, width=90):
    """Frames whose red and green are row and column, so that the geometry can be read off; labels follow both."""
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([2 * rows, 2 * columns, np.full_like(rows, 128)], axis=-1).astype(np.uint8)
    mask = (1 + rows // 20 + 3 * (columns // 30)).astype(np.uint8)
    return np.stack([frame] * num_frames), np.stack([mask] * num_frames)


def augment(augmentation, frames, masks, seed):
    """The augmented frames with the channels last, the masks, and what is to happen to the colours."""
    clip, labels, draws = augmentation(frames, masks, np.random.default_rng(seed))
    return clip.permute(0, 2, 3, 1).numpy(), labels, draws


def test_training_sizes_equal_the_official_ones(official_facts):
    for case in official_facts["resize_train"]:
        assert resized_size(tuple(case["input_hw"]), (853, 480), case["ratio"]) == tuple(case["output_hw"])


@pytest.mark.parametrize("index", [0, 1])
def test_resizing_matches_opencv(official_tensors, index):
    expected = official_tensors[f"train_resize.frame{index}"]
    resized = resize_frame(official_tensors[f"in.frame{index}_bgr"], expected.shape[:2])
    assert np.abs(resized.astype(int) - expected).max() <= 2  # both round fixed-point weights, not in the same way

    labels = official_tensors[f"train_resize.seg{index}"]
    assert (resize_mask(official_tensors[f"in.seg{index}"], labels.shape) == labels).all()


def test_shrunk_labels_take_the_pixel_at_the_floor():
    mask = np.arange(70, dtype=np.uint8).reshape(7, 10)
    assert resize_mask(mask, (3, 4)).tolist() == [[0, 2, 5, 7], [20, 22, 25, 27], [40, 42, 45, 47]]
    assert resize_mask(mask, (3, 4), (slice(1, 9), slice(2, 4))).tolist() == [[25, 27], [45, 47]]


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_crops_equal_the_official_ones_for_their_draws(official_tensors, official_cases, index):
    case = official_cases["crop"]
    size, result = tuple(case["crop_size"]), case["results"][index]
    draws = [value for _, value in result["draws"]]
    proposals = iter(list(zip(draws[::2], draws[1::2], strict=True)))
    masks = np.stack([official_tensors["train_resize.seg0"], official_tensors["train_resize.seg1"]])

    # The recorded labels are reduced already: only 255 is void there.
    top, left = select_crop(masks[-1], size, proposals, case["cat_max_ratio"], void_ids=(255,))

    assert [top, left] == result["offset_hw"]
    assert next(proposals, None) is None  # as many draws as the official code made
    for frame in (0, 1):
        cropped = (
            official_tensors[f"in.seg{frame}"],
            masks[frame].shape,
            np.s_[top : top + size[0], left : left + size[1]],
        )
        assert (resize_mask(*cropped) == official_tensors[f"crop{index}.seg{frame}"]).all()


def test_void_pixels_do_not_count_for_the_class_ratio():
    mask = np.zeros((4, 8), np.uint8)
    mask[0, :4] = (1, 1, 2, 0)  # left half: two labelled as 1, one as 2
    mask[:, 4:] = (3, 255, 255, 0)  # right half: a single class
    choose = lambda ratio, *corners: select_crop(mask, (4, 4), itertools.cycle(corners), ratio, (0, 255))  # noqa: E731
    assert choose(0.7, (0, 4), (0, 0)) == (0, 0)
    assert choose(0.6, (0, 0), (0, 4)) == (0, 0)  # 2 / 3 is too much: ten re-draws end where they began
    assert choose(1, (0, 4), (0, 0)) == (0, 4)


def test_crop_proposals_cover_all_corners_inside_the_frame():
    rng = np.random.default_rng(0)
    drawn = set(itertools.islice(crop_proposals((12, 8), (10, 10), rng), 200))
    assert drawn == {(0, 0), (1, 0), (2, 0)}


def test_every_frame_and_its_labels_share_one_geometry():
    frames, masks = coordinate_clip()
    augmentation = ClipAugmentation(base_size=(90, 60), crop_size=(40, 50), photometric=False)
    for seed in range(30):
        augmented, labels, _ = augment(augmentation, frames, masks, seed)
        assert (augmented == augmented[:1]).all() and (labels == labels[:1]).all()
        rows, columns = augmented[0, ..., 0] / 2, augmented[0, ..., 1] / 2
        to_row_border, to_column_border = np.abs((rows + 10) % 20 - 10), np.abs((columns + 15) % 30 - 15)
        is_clear = (to_row_border > 2) & (to_column_border > 2)  # two source pixels cover the resampling
        expected = 1 + rows // 20 + 3 * (columns // 30)
        assert is_clear.mean() > 0.5
        assert (labels[0] == expected)[is_clear].all()


def test_colors_change_per_frame_but_the_geometry_does_not():
    frames, masks = coordinate_clip(num_frames=4)
    plain = ClipAugmentation(base_size=(90, 60), crop_size=(40, 50), photometric=False)
    colored = ClipAugmentation(base_size=(90, 60), crop_size=(40, 50))
    plain_labels = augment(plain, frames, masks, 5)[1]
    augmented, labels, draws = augment(colored, frames, masks, 5)
    assert (labels == plain_labels).all() and (augmented == augmented[:1]).all()
    assert len(set(draws)) == 4


def test_augmentation_adds_no_labels():
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (2, 60, 90, 3), dtype=np.uint8)
    for seed in range(30):
        masks = rng.choice(np.array([0, 3, 90, 255], np.uint8), (2, 60, 90))
        _, labels, _ = augment(ClipAugmentation((90, 60), crop_size=(40, 50)), frames, masks, seed)
        assert set(np.unique(labels)) <= {0, 3, 90, 255}


def test_flip_probability_decides_the_flip():
    frames, masks = coordinate_clip()
    fixed = {"base_size": (90, 60), "ratio_range": (1.0, 1.0), "crop_size": (60, 90), "photometric": False}
    never = augment(ClipAugmentation(**fixed, flip_probability=0), frames, masks, 0)
    always = augment(ClipAugmentation(**fixed, flip_probability=1), frames, masks, 0)
    assert (never[0] == frames).all() and (never[1] == masks).all()
    assert (always[0] == frames[:, :, ::-1]).all() and (always[1] == masks[:, :, ::-1]).all()


def test_ratio_range_decides_the_size():
    frames, masks = coordinate_clip()
    augmentation = ClipAugmentation((90, 60), ratio_range=(0.5, 0.5), crop_size=(100, 100), photometric=False)
    assert augment(augmentation, frames, masks, 0)[1].shape == (3, 30, 45)


def test_class_ratio_is_that_of_the_last_frame():
    frames, masks = coordinate_clip(num_frames=2)
    masks[0] = 1
    masks[1] = np.where(np.arange(90) < 70, 1, 2)
    augmentation = ClipAugmentation((90, 60), (1.0, 1.0), (60, 30), 0.75, flip_probability=0, photometric=False)
    shares = [(augment(augmentation, frames, masks, seed)[1][1] == 2).mean() for seed in range(40)]
    assert np.mean([share > 0.25 for share in shares]) > 0.8  # a crop at random does so with probability 13 / 61


def test_augmentation_is_reproducible():
    frames, masks = coordinate_clip()
    augmentation = ClipAugmentation((90, 60), crop_size=(40, 50))
    first = augment(augmentation, frames, masks, 3)
    second = augment(augmentation, frames, masks, 3)
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all() and first[2] == second[2]


def test_defaults_equal_the_official_parameters():
    assert ClipAugmentation() == ClipAugmentation(
        base_size=(853, 480),
        ratio_range=(0.5, 2.0),
        crop_size=(480, 480),
        cat_max_ratio=0.75,
        flip_probability=0.5,
        photometric=True,
        void_ids=(0, 255),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_size", (0, 480)),
        ("crop_size", (480, -1)),
        ("ratio_range", (2.0, 0.5)),
        ("ratio_range", (0.0, 1.0)),
        ("cat_max_ratio", 1.5),
        ("flip_probability", -0.1),
    ],
)
def test_invalid_parameters_are_rejected(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.* must be"):
        ClipAugmentation(**{name: value})

# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from transformers_themask.data.images import read_frame, read_mask
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import (
    SyntheticObject,
    SyntheticScene,
    draw_scene,
    render_scene,
    render_synthetic_video,
    synthetic_class_names,
    write_synthetic_dataset,
)
from transformers_themask.data.vspw import read_class_names
from transformers_themask.files.atomic import AtomicFolder

SIZE = (64, 80)


def film(scene, num_frames=3):
    frames, masks = render_scene(scene, num_frames, SIZE, np.random.default_rng(0))
    return frames.astype(int), masks


def test_labels_follow_a_moving_growing_disc():
    disc = SyntheticObject(
        class_id=5,
        shape="disc",
        pattern="rings",
        tint=(1.0, 1.0, 1.0),
        pattern_scale=1.0,
        pattern_phase=(0.0, 0.0),
        center=(0.4, 0.5),
        velocity=(0.05, -0.02),
        radius=0.2,
        stretch=1.0,
        swelling=(0.2, 0.3, 0.0),
        rotation=(0.0, 0.1),
    )
    scene = SyntheticScene((disc,), landscape_seed=0, pan_speed=0.01, flicker=(0.0, 0.0, 0.0), light=(1.0, 1.0, 1.0))
    masks = film(scene, num_frames=6)[1]
    rows, columns = (np.indices(SIZE) + 0.5) / 64
    for time, mask in enumerate(masks):
        to_outline = np.hypot(columns - 0.4 - 0.05 * time, rows - 0.5 + 0.02 * time) - 0.2 * (
            1 + 0.2 * np.sin(0.3 * time)
        )
        assert ((mask == 5) == (64 * to_outline < -0.75)).all()
        assert (mask[np.abs(64 * to_outline) < 0.75] == 0).all()


@pytest.mark.parametrize("preset", ["texture", "shape"])
def test_object_changes_pixels_only_inside_its_label(preset):
    scene = draw_scene(np.random.default_rng(4), SIZE[1] / SIZE[0], 8, preset)
    scene = dataclasses.replace(scene, objects=scene.objects[-1:])
    still = dataclasses.replace(
        scene.objects[0],
        center=(0.5, 0.5),
        velocity=(0.0, 0.0),
        radius=0.25,
        swelling=(0.0, 0.0, 0.0),
        rotation=(0.3, 0.0),
    )
    with_object, masks = film(dataclasses.replace(scene, objects=(still,)))
    without, _ = film(dataclasses.replace(scene, objects=()))
    is_changed = (with_object != without).any(-1)
    is_object = masks == still.class_id
    brightened = ((with_object > without + 2).any(-1)) & ~is_object & (masks != 0)
    assert is_object.mean() > 0.04
    assert is_changed[is_object].mean() > 0.99
    assert not brightened.any()  # outside its label an object only casts a shadow


def test_objects_in_front_occlude_others():
    scene = draw_scene(np.random.default_rng(1), SIZE[1] / SIZE[0], 8, "texture")
    masks = film(scene)[1]
    front = scene.objects[-1]
    alone = film(dataclasses.replace(scene, objects=(front,)))[1]
    assert (masks[alone == front.class_id] == front.class_id).all()


def test_video_depends_on_the_seed_and_not_on_its_length():
    frames, masks = render_synthetic_video(3, num_frames=4, size=SIZE)
    again, again_masks = render_synthetic_video(3, num_frames=6, size=SIZE)
    assert (frames == again[:4]).all() and (masks == again_masks[:4]).all()
    assert (render_synthetic_video(4, num_frames=4, size=SIZE)[1] != masks).mean() > 0.2


@pytest.mark.parametrize("num_classes", [3, 8, 10])
def test_labels_are_all_classes_and_void(num_classes):
    masks = np.stack([render_synthetic_video(seed, 2, SIZE, num_classes)[1] for seed in range(12)])
    assert set(np.unique(masks)) == set(range(num_classes + 1))
    assert 0.01 < (masks == 0).mean() < 0.2  # the void band is 1.5 pixels wide whatever the frame's size


def test_labels_change_over_time():
    _, masks = render_synthetic_video(0, num_frames=10, size=SIZE)
    assert (masks[0] != masks[-1]).mean() > 0.1


def test_presets_vary_the_other_feature_freely():
    rng = np.random.default_rng(0)
    for preset, fixed, free in (("texture", "pattern", "shape"), ("shape", "shape", "pattern")):
        things = [thing for _ in range(40) for thing in draw_scene(rng, 1.25, 10, preset).objects]
        names = synthetic_class_names(10, preset)
        assert all(getattr(thing, fixed) == names[thing.class_id - 1] for thing in things)
        for class_id in range(3, 11):
            assert len({getattr(thing, free) for thing in things if thing.class_id == class_id}) > 3


def test_written_dataset_reads_back_as_rendered(tmp_path):
    root = tmp_path / "toy"
    write_synthetic_dataset(root, num_train_videos=2, num_val_videos=1, num_frames=3, size=SIZE, num_classes=5, seed=7)
    assert read_class_names(root) == ["sky", "meadow", "stripes", "checks", "dots"]
    train, val = (load_videos(root, split).rows for split in ("train", "val"))
    assert train["video_id"] == ["train_0000", "train_0001"] and val["video_id"] == ["val_0000"]
    frames, masks = render_synthetic_video([7, 2], 3, SIZE, 5)
    for index in range(3):
        assert (read_mask(root / val[0]["masks"][index]) == masks[index]).all()
        difference = read_frame(root / val[0]["frames"][index]).astype(int) - frames[index]
        assert np.abs(difference).mean() < 8  # JPEG
    assert {path.name for path in tmp_path.iterdir()} == {"toy"}


def test_writing_is_deterministic_and_survives_an_interrupted_run(tmp_path):
    leftover = AtomicFolder(tmp_path / "second").make()
    (leftover / "left_over.txt").write_text("")
    (tmp_path / "second").mkdir()
    for name in ("first", "second"):
        write_synthetic_dataset(tmp_path / name, 1, 1, num_frames=2, size=(32, 40))
    files = [path for path in sorted((tmp_path / "first").rglob("*")) if path.is_file()]
    assert len(files) == 3 + 8
    for path in files:
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()
    assert not leftover.exists() and not (tmp_path / "second" / "left_over.txt").exists()


def test_existing_dataset_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(FileExistsError, match="`root` must be a new or empty folder"):
        write_synthetic_dataset(tmp_path, 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, "`num_classes` must be between 3 and 10. Got 2"),
        ({"num_classes": 11}, "`num_classes` must be between 3 and 10. Got 11"),
        ({"preset": "smell"}, "`preset` must be one of texture, shape. Got 'smell'"),
        ({"num_frames": 0}, "`num_frames` must be at least 1"),
        ({"size": (8, 160)}, r"`size` at least 16. Got 30 and \(8, 160\)"),
    ],
)
def test_invalid_sizes_and_presets_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        render_synthetic_video(0, **options)

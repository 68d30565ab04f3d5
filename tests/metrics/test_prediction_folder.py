# SPDX-License-Identifier: Apache-2.0
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transformers_themask.data.labelled_videos import LabelledVideos
from transformers_themask.metrics.prediction_folder import score_prediction_folder

NUM_LABELS = 5
SCORE_NAMES = ["mean_iou", "weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8", "vc16"]


def write_maps(folder, maps):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{1000 + 2 * index:08d}.png" for index in range(len(maps))]
    for path, ids in zip(paths, maps, strict=True):
        Image.fromarray(ids).save(path)
    return paths


@pytest.fixture
def raw_masks():
    """Two videos of raw ids in which every id occurs and moves, with both void ids."""
    rng = np.random.default_rng(3)
    frame = np.repeat(np.array([0, 1, 2, 3, 4, 5, 255], dtype=np.uint8), 3)[None].repeat(6, axis=0)
    rng.shuffle(frame, axis=1)
    return {
        "slow": np.stack([np.roll(frame, index // 10, axis=1) for index in range(20)]),
        "short": np.stack([frame.T.copy()] * 9),
    }


@pytest.fixture
def videos(tmp_path, raw_masks):
    return {name: write_maps(tmp_path / "data" / name / "mask", masks) for name, masks in raw_masks.items()}


@pytest.fixture
def predictions_dir(tmp_path, raw_masks, shifted):
    for name, masks in raw_masks.items():
        write_maps(tmp_path / "predictions" / name, shifted(masks))
    return tmp_path / "predictions"


def labelled_videos(masks, num_labels=NUM_LABELS):
    """The split whose videos have these mask files; nobody opens its frames."""
    rows = [
        {
            "video_id": name,
            "num_frames": len(paths),
            "frames": [f"{name}/{path.name}" for path in paths],
            "masks": paths,
        }
        for name, paths in masks.items()
    ]
    return LabelledVideos(rows, Path(), [f"class {index}" for index in range(num_labels)])


@pytest.fixture
def score(class_indices):
    def run(predictions_dir, videos, progress=False, **options):
        return score_prediction_folder(
            predictions_dir, labelled_videos(videos), class_indices, progress=progress, **options
        )

    return run


@pytest.mark.parametrize("prediction_ids", ["reduced", "raw"])
def test_perfect_label_maps_score_exactly_one(prediction_ids, tmp_path, raw_masks, videos, shifted, score):
    for name, masks in raw_masks.items():
        write_maps(tmp_path / "maps" / name, masks if prediction_ids == "raw" else shifted(masks))
    scores = score(tmp_path / "maps", videos, prediction_ids=prediction_ids)
    assert [scores[name] for name in SCORE_NAMES] == [1.0] * 6
    assert scores["per_class_iou"] == [1.0] * NUM_LABELS
    assert (scores["num_frames"], scores["num_videos"]) == (29, 2)
    assert set(scores) == {*SCORE_NAMES, "per_class_iou", "num_frames", "num_videos", "per_video"}


def test_frames_without_a_mask_need_no_prediction(tmp_path, raw_masks, videos, shifted, class_indices):
    sparse = {name: [path if index % 5 == 2 else "" for index, path in enumerate(videos[name])] for name in videos}
    for name, masks in raw_masks.items():
        maps = write_maps(tmp_path / "maps" / name, shifted(masks))
        for index, path in enumerate(maps):
            if index % 5 != 2:
                path.unlink()
    split = labelled_videos(videos)
    for row in split.rows:
        row["masks"] = sparse[row["video_id"]]
    scores = score_prediction_folder(tmp_path / "maps", split, class_indices, progress=False)
    assert scores["mean_iou"] == 1.0 and scores["num_frames"] == 6
    assert math.isnan(scores["vc8"])


def test_any_class_may_be_predicted_on_void(tmp_path, raw_masks, videos, shifted, score):
    for name, masks in raw_masks.items():
        write_maps(tmp_path / "maps" / name, np.where(shifted(masks) == 255, 2, shifted(masks)).astype(np.uint8))
    scores = score(tmp_path / "maps", videos)
    assert [scores[name] for name in SCORE_NAMES[:4]] == [1.0] * 4


def test_imperfect_maps_score_like_the_recorded_clips(tmp_path, clips, recorded_scores, class_indices):
    videos = {name: write_maps(tmp_path / "masks" / name, labels) for name, (_, labels) in clips.items()}
    for name, (predictions, _) in clips.items():
        write_maps(tmp_path / "maps" / name, predictions)
    scores = score_prediction_folder(tmp_path / "maps", labelled_videos(videos, 124), class_indices, progress=False)
    evaluator, script = recorded_scores["vspw_evaluator_shifted_masks"], recorded_scores["vspw_script"]
    assert scores["mean_iou"] == pytest.approx(evaluator["mIoU"], rel=1e-12)
    assert scores["weighted_iou"] == pytest.approx(evaluator["FWIoU"], rel=1e-12)
    assert scores["vc8"] == pytest.approx(script["VC8"]["score"], rel=1e-12)
    assert scores["vc16"] == pytest.approx(script["VC16"]["score"], rel=1e-12)


def test_palette_pngs_are_read_by_index(predictions_dir, videos, score):
    for path in predictions_dir.glob("*/*.png"):
        image = Image.open(path)
        palette_image = Image.fromarray(np.array(image)).convert("P")
        palette_image.putpalette(list(range(256)) * 3)
        np.testing.assert_array_equal(palette_image, image)
        palette_image.save(path)
    assert score(predictions_dir, videos)["mean_iou"] == 1.0


def test_other_window_lengths_are_scored(predictions_dir, videos, score):
    scores = score(predictions_dir, videos, window_lengths=(2,))
    assert scores["vc2"] == 1.0 and "vc8" not in scores


def test_a_progress_bar_counts_the_frames(predictions_dir, videos, capfd, score):
    score(predictions_dir, videos, progress=True)
    assert "29/29" in capfd.readouterr().err
    score(predictions_dir, videos)
    assert capfd.readouterr().err == ""


def assert_one_sentence(error, path, *parts):
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert re.search(part, message), (part, message)


def test_missing_prediction_is_an_error(predictions_dir, videos, score):
    path = predictions_dir / "short" / videos["short"][4].name
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, path, str(videos["short"][4]), "name predictions <video>/<frame>.png")


def test_missing_mask_is_an_error(predictions_dir, videos, score):
    videos["slow"][0].unlink()
    with pytest.raises(FileNotFoundError) as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, videos["slow"][0], "check the data folder")


def test_prediction_of_another_size_is_rejected(predictions_dir, videos, score):
    path = predictions_dir / "slow" / videos["slow"][0].name
    Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match="must have the size") as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, path, r"\(6, 21\) of its mask", r"Got \(3, 4\); resize")


@pytest.mark.parametrize("damage", ["text", "truncated", "broken_header"])
def test_unreadable_png_is_an_error(damage, predictions_dir, videos, score):
    path = predictions_dir / "slow" / videos["slow"][2].name
    content = path.read_bytes()
    path.write_bytes({"text": b"not an image", "truncated": content[:60], "broken_header": content[:20]}[damage])
    with pytest.raises(OSError, match="must be readable") as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, path, "Replace the broken file")


def test_colour_image_is_rejected(predictions_dir, videos, score):
    path = predictions_dir / "slow" / videos["slow"][0].name
    Image.new("RGB", (21, 6)).save(path)
    with pytest.raises(ValueError, match="8-bit single-channel image") as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, path, "Got mode RGB")


def test_raw_predictions_given_as_reduced_suggest_the_option(tmp_path, raw_masks, videos, score):
    paths = [write_maps(tmp_path / "maps" / name, masks) for name, masks in raw_masks.items()]
    with pytest.raises(ValueError, match="reduced ids 0 to 4 or 255") as error:
        score(tmp_path / "maps", videos)
    assert_one_sentence(error, paths[0][0], "Got 5; ", "--prediction-ids raw")


def test_reduced_predictions_given_as_raw_suggest_the_option(predictions_dir, videos, score):
    with pytest.raises(ValueError, match="must hold a class wherever the mask does") as error:
        score(predictions_dir, videos, prediction_ids="raw")
    path = predictions_dir / "slow" / videos["slow"][0].name
    assert_one_sentence(error, path, r"Got 0 or 255 \(void\) at 18 labelled pixels", "--prediction-ids reduced")


@pytest.mark.parametrize("prediction_ids", ["reduced", "raw"])
def test_valid_ids_of_the_other_kind_give_a_warning(prediction_ids, tmp_path, score, caplog):
    """The highest raw id does not occur in the first case, nor index 0 in the second: every id has both readings."""
    raw_masks = np.array([1, 2, 3, 3] if prediction_ids == "reduced" else [2, 3, 4, 0], dtype=np.uint8)
    raw_masks = raw_masks[None, None].repeat(6, axis=1).repeat(3, axis=0)
    videos = {"a": write_maps(tmp_path / "masks" / "a", raw_masks)}
    other = raw_masks if prediction_ids == "reduced" else np.maximum(raw_masks, 2) - 1
    write_maps(tmp_path / "maps" / "a", other)
    wrong = score(tmp_path / "maps", videos, prediction_ids=prediction_ids)
    other_ids = "raw" if prediction_ids == "reduced" else "reduced"
    (warning,) = caplog.messages
    expected = f"Read as {prediction_ids} ids, 0% of the pixels agree; as {other_ids} ids 100% would: see"
    assert warning == f"{expected} `--prediction-ids`."
    assert wrong["pixel_accuracy"] == 0
    caplog.clear()
    assert score(tmp_path / "maps", videos, prediction_ids=other_ids)["pixel_accuracy"] == 1
    assert not caplog.messages


@pytest.mark.parametrize(("prediction_ids", "highest"), [("reduced", 4), ("raw", 5)])
def test_prediction_id_out_of_range_is_rejected(prediction_ids, highest, predictions_dir, videos, score):
    path = predictions_dir / "slow" / videos["slow"][0].name
    Image.fromarray(np.full((6, 21), 99, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=rf"{prediction_ids} ids 0 to {highest} or 255") as error:
        score(predictions_dir, videos, prediction_ids=prediction_ids)
    assert_one_sentence(error, path, "Got 99; check the number of classes")


def test_mask_id_out_of_range_is_rejected(predictions_dir, videos, score):
    Image.fromarray(np.full((6, 21), 6, dtype=np.uint8)).save(videos["slow"][0])
    with pytest.raises(ValueError, match=r"raw ids from 0 to 5 \(0 is void\) or 255") as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, videos["slow"][0], "Got 6; correct the mask or the list of classes")


def test_void_at_labelled_pixels_is_rejected_with_a_count(predictions_dir, videos, score):
    path = predictions_dir / "slow" / videos["slow"][0].name
    Image.fromarray(np.full((6, 21), 255, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match="Got 255") as error:
        score(predictions_dir, videos)
    assert_one_sentence(error, path, "at 90 labelled pixels", "predict one of the classes there")


def test_invalid_arguments_are_rejected(tmp_path, predictions_dir, videos, score):
    with pytest.raises(ValueError, match=r"`prediction_ids` must be 'reduced' or 'raw'. Got 'shifted'"):
        score(predictions_dir, videos, prediction_ids="shifted")
    with pytest.raises(FileNotFoundError, match=r"`predictions_dir` must be a folder of label maps. Got .*nowhere"):
        score(tmp_path / "nowhere", videos)
    with pytest.raises(ValueError, match="`videos` must have at least one mask"):
        score(predictions_dir, {})

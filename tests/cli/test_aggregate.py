# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segmented_clip import NAMES, saved, segmenter_with
from themask_command import main
from tiny import tiny_model
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.inference.segment import segment_frames
from transformers_themask.mvc.aggregation import temporal_consistency
from transformers_themask.sinks.label_maps import write_label_map
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.video_reader import VideoReader

VIDEOS = ("val_0000", "val_0001")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two videos of five frames in VSPW layout."""
    root = tmp_path_factory.mktemp("data") / "root"
    write_synthetic_dataset(root, 1, 2, num_frames=5, size=(48, 64), seed=3)
    return root


@pytest.fixture
def results(root, tmp_path):
    """True label maps, `smooth`, and the same in another order of time, `scrambled`."""
    order = [3, 0, 4, 2, 1]
    for video in VIDEOS:
        masks = sorted((root / "data" / video / "mask").iterdir())
        for position, mask in enumerate(masks):
            label_map = np.maximum(np.asarray(Image.open(mask)), 1) - 1
            write_label_map(label_map, tmp_path / "smooth" / video / mask.name)
            write_label_map(label_map, tmp_path / "scrambled" / video / masks[order.index(position)].name)
    return SimpleNamespace(smooth=tmp_path / "smooth", scrambled=tmp_path / "scrambled")


def aggregate(*arguments):
    return main(["aggregate", *map(str, arguments), "--device", "cpu"])


def error_of(capsys, *arguments):
    """The error message of the command."""
    assert aggregate(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("themask aggregate: ")
    return lines[-1]


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def label_maps(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("flow", ["forward", "backward"])
@pytest.mark.parametrize("is_first", [True, False])
def test_smooth_result_is_chosen_over_a_scrambled_one(root, results, tmp_path, capsys, is_first, flow):
    given = [results.smooth, results.scrambled] if is_first else [results.scrambled, results.smooth]
    output = tmp_path / "out"
    assert aggregate(*given, "--data", root, "-o", output, "--flow", flow) == 0
    assert content(output) == content(results.smooth)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json", "scrambled", "smooth"]
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["results"] == [{"result": str(folder), "kind": "label maps"} for folder in given]
    assert report["flow"]["direction"] == flow and "opencv" in report["versions"]
    winner = 0 if is_first else 1
    for video, entry in zip(VIDEOS, report["videos"], strict=True):
        frames = list(FrameFolder(root / "data" / video / "origin"))
        scores = [temporal_consistency(frames, label_maps(folder / video), flow) for folder in given]
        assert entry == {
            "video": video,
            "num_frames": 5,
            "scores": scores,
            "chosen": winner,
            "chosen_result": str(results.smooth),
        }
    lines = capsys.readouterr().out.splitlines()
    for video, entry, line in zip(VIDEOS, report["videos"], lines, strict=False):
        assert line == f"{video}: {entry['scores'][0]:.4f}  {entry['scores'][1]:.4f}  {results.smooth}"
    assert lines[2:4] == [f"{output}: 2 videos, 10 frames", f"{tmp_path / 'out.json'}: scores"]
    mean = np.mean([entry["scores"][winner] for entry in report["videos"]])
    assert lines[4 + winner] == f"{results.smooth}: chosen for 2 of 2 videos, mean score {mean:.4f}"
    assert lines[5 - winner].startswith(f"{results.scrambled}: chosen for 0 of 2 videos, mean score 0.")


def test_each_video_is_chosen_independently(root, results, tmp_path):
    """Of two results, each scrambled in one of the videos, the other half of each is taken."""
    for folder, other in ((results.smooth, results.scrambled), (results.scrambled, results.smooth)):
        shutil.copytree(folder, tmp_path / f"mixed_{folder.name}")
        shutil.rmtree(tmp_path / f"mixed_{folder.name}" / VIDEOS[1])
        shutil.copytree(other / VIDEOS[1], tmp_path / f"mixed_{folder.name}" / VIDEOS[1])
    given = [tmp_path / "mixed_scrambled", tmp_path / "mixed_smooth"]
    assert aggregate(*given, "--data", root, "-o", tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(results.smooth)
    report = json.loads((tmp_path / "out.json").read_text())
    assert [entry["chosen"] for entry in report["videos"]] == [1, 0]


def test_first_of_identical_results_is_chosen(root, results, tmp_path):
    copy = shutil.copytree(results.scrambled, tmp_path / "copy")
    given = [results.scrambled, results.scrambled, copy]
    assert aggregate(*given, "--data", root, "-o", tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(results.scrambled)
    for entry in json.loads((tmp_path / "out.json").read_text())["videos"]:
        assert entry["chosen"] == 0 and len(set(entry["scores"])) == 1


def test_model_labels_the_video_before_the_choice(segmenter, model_dir, video_path, tmp_path, capsys):
    """Against a constant result it loses, and against noise it wins."""
    frames = list(VideoReader(video_path))
    rng = np.random.default_rng(0)
    for index, frame in enumerate(frames):
        write_label_map(np.full(frame.shape[:2], 2, np.uint8), tmp_path / "constant" / f"{index:08d}.png")
        noise = rng.integers(0, 250, frame.shape[:2], dtype=np.uint8)
        write_label_map(noise, tmp_path / "noise" / f"{index:08d}.png")
    options = ["--video", video_path, "--mode", "sliding", "--num-frames", 3]
    given = [model_dir, tmp_path / "constant", tmp_path / "noise"]
    assert aggregate(*given, *options, "-o", tmp_path / "first" / "out") == 0
    assert content(tmp_path / "first" / "out") == content(tmp_path / "constant")
    assert aggregate(given[2], given[0], *options, "-o", tmp_path / "out", "--scores", tmp_path / "scores.json") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["constant", "first", "noise", "out", "scores.json"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["out", "out.json"]
    expected = [maps for _, maps in segment_frames(segmenter.model, segmenter.processor, frames, 3, mode="sliding")]
    np.testing.assert_array_equal(label_maps(tmp_path / "out"), expected)
    report = json.loads((tmp_path / "scores.json").read_text())
    record = report["results"][1]
    assert len(record.pop("fingerprint")) == 16
    assert record == {
        "result": str(model_dir),
        "kind": "model",
        "mode": "sliding",
        "num_frames": 3,
        "frame_stride": 1,
    }
    (entry,) = report["videos"]
    assert entry["video"] == str(video_path) and entry["chosen"] == 1
    assert entry["scores"][1] == temporal_consistency(frames, expected)
    printed = capsys.readouterr()
    assert f"{video_path}: " in printed.out and "Labelling with" in printed.err and "11/11" in printed.err


def test_models_label_every_video_of_a_data_set(root, model_dir, segmenter, tmp_path):
    """A model with itself changes nothing and is asked once."""
    assert aggregate(model_dir, model_dir, "--data", root, "-o", tmp_path / "out") == 0
    for video in VIDEOS:
        frames = FrameFolder(root / "data" / video / "origin")
        expected = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, frames)]
        names = [path.name for path in sorted((tmp_path / "out" / video).iterdir())]
        assert names == [f"{frames.frame_name(index)}.png" for index in range(5)]
        np.testing.assert_array_equal(label_maps(tmp_path / "out" / video), expected)
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["results"][0] == report["results"][1]
    assert all(entry["chosen"] == 0 and len(set(entry["scores"])) == 1 for entry in report["videos"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]


def test_two_models_are_compared_by_their_own_labels(root, segmenter, model_dir, tmp_path):
    other = segmenter_with(NAMES)
    with torch.no_grad():
        other.model.class_predictor.weight.neg_()
    given = [saved(other, tmp_path / "other"), model_dir]
    assert aggregate(*given, "--data", root, "-o", tmp_path / "out") == 0
    for video, entry in zip(VIDEOS, json.loads((tmp_path / "out.json").read_text())["videos"], strict=True):
        frames = list(FrameFolder(root / "data" / video / "origin"))
        results = [
            [label_map for _, label_map in segment_frames(loaded.model, loaded.processor, frames)]
            for loaded in (other, segmenter)
        ]
        assert entry["scores"] == [temporal_consistency(frames, maps) for maps in results]
        assert len(set(entry["scores"])) == 2 and entry["chosen"] == np.argmax(entry["scores"])
        np.testing.assert_array_equal(label_maps(tmp_path / "out" / video), results[entry["chosen"]])


def test_models_with_different_or_too_many_classes_are_rejected(root, segmenter, model_dir, tmp_path, capsys):
    other = saved(segmenter_with({**NAMES, 5: "gravel"}), tmp_path / "other")
    error = error_of(capsys, model_dir, other, "--data", root, "-o", tmp_path / "out")
    assert f"must have the same classes in the same order. Those of {other} differ from those of {model_dir}." in error
    many = saved(SimpleNamespace(model=tiny_model(num_labels=256), processor=segmenter.processor), tmp_path / "many")
    error = error_of(capsys, many, many, "--data", root, "-o", tmp_path / "out")
    assert f"Models must have at most 255 classes, as 255 stands for void. Got 256 in {many}." in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "other"]


def test_conflicting_options_are_rejected(root, results, video_path, frame_folder, tmp_path, capsys):
    a, b, output = results.smooth, results.scrambled, tmp_path / "out"
    data = ["--data", root, "-o", output]

    def error(*arguments):
        sentence = error_of(capsys, *arguments)
        assert not output.exists() and not list(tmp_path.glob("*.json"))
        return sentence

    assert f"`RESULT` must be given twice or more, to choose from. Got {a} alone." in error(a, *data)
    assert f"`--output` must be a new or empty folder. Got {a}" in error(a, b, "--data", root, "-o", a)
    inside = ["--video", frame_folder, "-o", frame_folder / "out"]
    assert "`--output` must not lie among the frames" in error(a, b, *inside)
    assert "`--scores` must differ from the input" in error(
        a, b, "--video", video_path, "-o", output, "--scores", video_path
    )
    for scores in (tmp_path, output, output / "scores.json"):
        assert "`--scores` must be a file outside the folder of `--output`" in error(a, b, *data, "--scores", scores)
    (tmp_path / "file").touch()
    assert "`--scores` must lie in a folder that" in error(a, b, *data, "--scores", tmp_path / "file" / "a.json")
    assert "`split` must name a split file" in error(a, b, *data, "--split", "dev")
    missing = error(a, tmp_path / "nowhere", *data)
    assert "`RESULT` must be a folder of label maps, that of a saved model, or a Hub id" in missing
    assert "`RESULT` must be a folder of label maps" in error(a, "nowhere", *data)
    assert "`--scores` must be a file whose name ends in .json" in error(
        a, b, *data, "--scores", a / VIDEOS[0] / "00000000.png"
    )
    for folder in (b, root):
        refused = "must not lie in a result or in the data set"
        assert f"`--scores` {refused}" in error(a, b, *data, "--scores", folder / "scores.json")
        assert f"`--output` {refused}" in error(a, b, "--data", root, "-o", folder / "out")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty / VIDEOS[0]} must be a folder of label maps, one PNG per frame." in error(a, empty, *data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "one of the arguments --video --data is required"),
        (["--video", "a.mp4", "--data", "b"], "argument --data: not allowed with argument --video"),
    ],
)
def test_exactly_one_of_video_and_data_is_required(source, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        aggregate("a", "b", *source, "-o", tmp_path / "out")
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"themask aggregate: error: {message}"


def test_label_maps_that_do_not_fit_the_video_are_rejected(root, results, tmp_path, capsys):
    arguments = [results.smooth, results.scrambled, "--data", root, "-o", tmp_path / "out"]
    path = sorted((results.scrambled / VIDEOS[1]).iterdir())[3]
    before = path.read_bytes()
    Image.open(path).resize((32, 24)).save(path)
    assert f"{path} must have the size of its frame, 48x64. Got (24, 32)." in error_of(capsys, *arguments)
    path.unlink()
    assert f"{path} must exist, as every frame has a label map. Got no such file." in error_of(capsys, *arguments)
    path.write_bytes(before)
    path.with_name("more.png").write_bytes(before)
    assert "must hold the label maps of 5 frames. Got 6." in error_of(capsys, *arguments)
    # Nothing is left of the first video, which was fine.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scrambled", "smooth"]


def test_damaged_video_is_rejected(model_dir, frame_folder, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for position, file in enumerate(sorted(frame_folder.iterdir())):
        (damaged / file.name).write_bytes(b"damaged" if position == 5 else file.read_bytes())
    error = error_of(capsys, model_dir, model_dir, "--video", damaged, "-o", tmp_path / "out")
    assert error.endswith("5 frames could be read. No output was written: every frame is needed.")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_camera_is_rejected(model_dir, tmp_path, capsys, monkeypatch):
    import cv2

    capture = SimpleNamespace(isOpened=lambda: True, get=lambda _: 30.0, release=lambda: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: capture)
    error = error_of(capsys, model_dir, model_dir, "--video", 0, "-o", tmp_path / "out")
    assert "`source` must be a video that can be read again. Got camera 0; record it first." in error


def test_missing_opencv_is_reported_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    error = error_of(capsys, "me/a", "me/b", "--data", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert "`pip install transformers-themask[aggregation]` installs it." in error


def test_help_warns_that_stable_is_not_accurate(capsys):
    with pytest.raises(SystemExit):
        main(["aggregate", "--help"])
    assert "Stable is not accurate: a constant result scores 1." in " ".join(capsys.readouterr().out.split())

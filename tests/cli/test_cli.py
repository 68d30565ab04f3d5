# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import signal
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from themask_command import main
from transformers_themask.drawing.palettes import class_palette, vspw_palette
from transformers_themask.inference.segment import segment_frames
from transformers_themask.mvc.passes import segment_frames_augmented
from transformers_themask.mvc.tta import TTA
from transformers_themask.sinks.label_track import label_track_classes, read_label_track
from transformers_themask.sinks.overlay_video import OverlayVideo
from transformers_themask.videos.frame_folder import FrameFolder
from transformers_themask.videos.video_reader import VideoReader

NAMES = {0: "sky", 1: "meadow", 2: "stripes", 3: "dots", 4: "checks", 5: "bricks"}
CLASS_NAMES = ["sky", "meadow", "never_seen"]


@pytest.fixture
def dataset(tmp_path):
    """Two labelled videos in VSPW layout and a folder of perfect label maps."""
    root, predictions = tmp_path / "data_set", tmp_path / "predictions"
    rng = np.random.default_rng(0)
    for video, num_frames in (("a", 9), ("b", 17)):
        for folder in (root / "data" / video / "origin", root / "data" / video / "mask", predictions / video):
            folder.mkdir(parents=True)
        for index in range(num_frames):
            mask = rng.integers(0, 3, (8, 12), dtype=np.uint8)
            mask[:4] = 1
            Image.fromarray(np.zeros((8, 12, 3), dtype=np.uint8)).save(root / f"data/{video}/origin/{index}.jpg")
            Image.fromarray(mask).save(root / f"data/{video}/mask/{index}.png")
            Image.fromarray(np.where(mask == 0, 0, mask - 1).astype(np.uint8)).save(
                predictions / video / f"{index}.png"
            )
    (root / "val.txt").write_text("a\nb\n")
    ids = {name: str(index + 1) for index, name in enumerate(CLASS_NAMES)}
    (root / "label_num_dic_final.json").write_text(json.dumps({**ids, "others": "0"}))
    return root, predictions


def error_of(arguments, capsys):
    """The error message of a command."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"themask {arguments[0]}: ")
    return error


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_segment_writes_overlay_and_label_maps(model_dir, video_path, tmp_path, capsys):
    output, labels = tmp_path / "out.mp4", tmp_path / "labels"
    assert run("segment", video_path, "-o", output, "--model", model_dir, "--labels", labels, "--device", "cpu") == 0
    reader = VideoReader(output)
    assert (reader.num_frames, reader.frame_rate, reader.height, reader.width) == (11, 10, 36, 50)
    assert len(list(labels.glob("*.png"))) == 11
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == [f"{output}: 11 frames", f"{labels}: 11 frames"]
    assert "11/11" in printed.err
    legend = printed.out.splitlines()[2:]
    assert legend[0] == "The pictures are too small for a legend. Their colours are:"
    shown = np.unique([np.asarray(Image.open(path)) for path in labels.iterdir()])
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in class_palette(6)[shown]]
    assert legend[1:] == [f"  {color}  {NAMES[index]}" for index, color in zip(shown, colors, strict=True)]


def test_segment_writes_every_other_output_without_a_video(model_dir, segmenter, video_path, tmp_path, capsys):
    track, table = tmp_path / "labels.mkv", tmp_path / "classes.csv"
    pictures = {"--contact-sheet": tmp_path / "sheet.png", "--timeline": tmp_path / "timeline.png"}
    outputs = {"--label-track": track, "--statistics": table, **pictures}
    flags = [text for pair in outputs.items() for text in pair]
    assert run("segment", video_path, "--model", model_dir, *flags, "--palette", "vspw", "--device", "cpu") == 0
    assert sorted(tmp_path.iterdir()) == sorted(outputs.values())
    assert capsys.readouterr().out.splitlines() == [f"{path}: 11 frames" for path in outputs.values()]
    source = VideoReader(video_path)
    maps = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, source)]
    times = [time for time, *_ in source.timed_frames()]
    read_times, read_maps = zip(*read_label_track(track), strict=True)
    assert list(read_times) == times and np.array_equal(read_maps, maps)
    names, palette = label_track_classes(track)
    assert names == list(NAMES.values()) and np.array_equal(palette, vspw_palette(6))
    rows = table.read_text().splitlines()
    assert len(rows) == 1 + sum(len(np.unique(label_map)) for label_map in maps)
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--mode", "sliding", "--num-frames", 3], (3, 1, "sliding")),
        (["--mode", "interleaved"], (2, 3, "interleaved")),
        (["--frame-stride", 2], (2, 2, "interleaved")),
    ],
)
def test_segment_passes_its_mode_to_the_model(model_dir, segmenter, video_path, tmp_path, flags, options):
    track = tmp_path / "labels.mkv"
    assert run("segment", video_path, "--model", model_dir, "--label-track", track, "--device", "cpu", *flags) == 0
    expected = segment_frames(segmenter.model, segmenter.processor, VideoReader(video_path), *options)
    for (_, label_map), (_, wanted) in zip(read_label_track(track), expected, strict=True):
        assert np.array_equal(label_map, wanted)


def test_segment_bf16_computes_in_bfloat16(model_dir, segmenter, video_path, tmp_path):
    labels = {}
    for flags in ([], ["--bf16"]):
        track = tmp_path / f"labels{len(labels)}.mkv"
        command = ("segment", video_path, "--model", model_dir, "--label-track", track, "--device", "cpu")
        assert run(*command, *flags) == 0
        labels[bool(flags)] = np.stack([label_map for _, label_map in read_label_track(track)])
    with torch.autocast("cpu", torch.bfloat16):
        expected = segment_frames(segmenter.model, segmenter.processor, VideoReader(video_path))
        assert np.array_equal(labels[True], np.stack([label_map for _, label_map in expected]))
    assert 0.9 < (labels[True] == labels[False]).mean() < 1


def test_segment_stops_after_max_frames(model_dir, video_path, tmp_path, capsys):
    output = tmp_path / "out.mp4"
    arguments = ["segment", video_path, "-o", output, "--model", model_dir, "--no-legend", "--device", "cpu"]
    assert run(*arguments, "--max-frames", 1) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{output}: 1 frame\n" and "1/1" in printed.err
    assert VideoReader(output).num_frames == 1


def test_camera_requires_max_frames(model_dir, tmp_path, capsys, monkeypatch):
    class Capture:
        def isOpened(self):  # noqa: N802
            return True

        def get(self, _):
            return 30.0

        def read(self):
            return True, np.zeros((36, 50, 3), dtype=np.uint8)

        def release(self):
            pass

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda index: Capture()))
    track = tmp_path / "labels.mkv"
    arguments = ["segment", "0", "--label-track", track, "--model", model_dir, "--device", "cpu"]
    assert "`--max-frames` must be given for a camera" in error_of(arguments, capsys)
    in_passes = [*arguments, "--max-frames", 5, "--tta", "1,2,3"]
    assert "`source` must be a video that can be read again for every pass" in error_of(in_passes, capsys)
    assert run(*arguments, "--max-frames", 5) == 0
    assert len(list(read_label_track(track))) == 5


def test_segment_keeps_the_frames_before_a_damaged_one(model_dir, frame_folder, tmp_path, capsys):
    folder, output, labels = tmp_path / "frames", tmp_path / "out.mp4", tmp_path / "labels"
    shutil.copytree(frame_folder, folder)
    files = sorted(folder.iterdir())
    files[7].write_bytes(files[7].read_bytes()[:100])
    arguments = ["segment", folder, "-o", output, "--labels", labels, "--model", model_dir, "--device", "cpu"]
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [str(output), str(labels)]
    sentence = printed.err.splitlines()[-1]
    assert sentence.startswith("themask segment: ") and str(files[7]) in sentence
    assert sentence.endswith("7 frames could be read.")
    assert len(list(VideoReader(output))) == len(list(labels.iterdir())) == 7


def test_segment_rejects_a_label_folder_that_is_not_empty(model_dir, video_path, tmp_path, capsys):
    output, labels = tmp_path / "out.mp4", tmp_path / "labels"
    labels.mkdir()
    (labels / "00000099.png").touch()
    arguments = ["segment", video_path, "-o", output, "--model", model_dir, "--labels", labels]
    assert f"`--labels` must be a new or empty folder. Got {labels}" in error_of(arguments, capsys)
    assert not output.exists()


def test_segment_options_reach_the_outputs(model_dir, frame_folder, segmenter, tmp_path):
    def label_maps(name, *options):
        arguments = ["segment", frame_folder, "-o", tmp_path / f"{name}.mp4", "--model", model_dir, "--device", "cpu"]
        labels = tmp_path / name
        assert main([str(argument) for argument in [*arguments, "--labels", labels, *options]]) == 0
        return np.array([np.asarray(Image.open(path)) for path in sorted(labels.iterdir())])

    strided = label_maps("strided", "--num-frames", 3, "--frame-stride", 2, "--frame-rate", "30000/1001")
    source = FrameFolder(frame_folder)
    expected = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, source, 3, 2)]
    assert np.array_equal(strided, expected)
    assert str(VideoReader(tmp_path / "strided.mp4").frame_rate) == "30000/1001"
    label_maps("plain", "--alpha", 0, "--no-legend")
    shown = np.array(list(VideoReader(tmp_path / "plain.mp4")), dtype=int)
    assert np.median(np.abs(shown - list(source))) < 8  # only H.264 lies between them


@pytest.mark.parametrize(
    ("flags", "tta"),
    [
        (["--tta", "1.0,2,3.0", "--flip"], TTA((1.0, 2.0, 3.0), flip=True)),
        (["--flip", "--tta-combine", "scores", "--mode", "sliding"], TTA(flip=True, combine="scores")),
        (["--tta", "2"], TTA((2.0,))),
    ],
)
def test_segment_combines_augmented_passes(model_dir, segmenter, video_path, tmp_path, capsys, flags, tta):
    output, track = tmp_path / "out.mp4", tmp_path / "labels.mkv"
    outputs = ["-o", output, "--label-track", track, "--max-frames", 7]
    assert run("segment", video_path, "--model", model_dir, *outputs, "--no-legend", "--device", "cpu", *flags) == 0
    assert capsys.readouterr().out.splitlines() == [f"{output}: 7 frames", f"{track}: 7 frames"]
    assert sorted(tmp_path.iterdir()) == [track, output] and VideoReader(output).num_frames == 7
    frames, mode = list(VideoReader(video_path))[:7], "sliding" if "sliding" in flags else None
    expected = segment_frames_augmented(segmenter.model, segmenter.processor, frames, tta, mode=mode)
    for (_, label_map), (_, wanted) in zip(read_label_track(track), expected, strict=True):
        assert np.array_equal(label_map, wanted)


def test_segment_rejects_impossible_augmentation(model_dir, video_path, tmp_path, capsys):
    def error(*flags):
        flags = ["-o", tmp_path / "out.mp4", "--model", model_dir, "--device", "cpu", *flags]
        return error_of(["segment", video_path, *flags], capsys)

    assert "add scales" in error("--flip") and "Say `--tta-combine scores`" in error("--flip")
    assert "`scales` must be numbers from 0.1 to 10 that differ" in error("--tta", "1.0,1.0")
    assert "Got 1 and 1.01, which both make 32x64 of frames of 36x50" in error("--tta", "1,1.01,2")
    assert not list(tmp_path.iterdir())


def test_segment_rejects_unusable_inputs_by_name(model_dir, video_path, tmp_path, capsys):
    def error(*arguments):
        return error_of(["segment", *arguments, "--device", "cpu"], capsys)

    output = tmp_path / "out.mp4"
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    missing = error(tmp_path / "missing.mp4", "-o", output, "--model", model_dir)
    assert "must name an existing video file" in missing and "missing.mp4" in missing
    assert "FFmpeg can read" in error(tmp_path / "text.mp4", "-o", output, "--model", model_dir)
    assert "jpg or png images" in error(tmp_path / "empty", "-o", output, "--model", model_dir)
    assert "`--model` must be" in error(video_path, "-o", output, "--model", tmp_path / "empty")
    assert "`--output` must be a file" in error(video_path, "-o", tmp_path / "out.avi", "--model", model_dir)
    assert "must differ from the input" in error(video_path, "-o", video_path, "--model", model_dir)
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "foo"], "`--device` must be a device that PyTorch can use here, such as cpu or cuda. Got 'foo'"),
        (["--labels", "{file}/labels"], "`--labels` must lie in a folder that can be written to"),
        (["-o", "{file}/out.mp4"], "`--output` must lie in a folder that can be written to"),
        (["-o", "{folder}"], "`--output` must be a file whose name ends in .mp4"),
        (["--label-track", "a.mp4"], "`--label-track` must be a file whose name ends in .mkv"),
        (["--statistics", "a.xlsx"], "`--statistics` must be a file whose name ends in .csv or .parquet"),
        (["--contact-sheet", "a.jpg"], "`--contact-sheet` must be a file whose name ends in .png"),
        (["--contact-sheet", "{file}/a.png"], "`--contact-sheet` must lie in a folder that can be written to"),
        (["--timeline", "a.mp4"], "`--timeline` must be a file whose name ends in .png"),
        (["--timeline", "a.png", "--contact-sheet", "./a.png"], "`--contact-sheet` and `--timeline` must differ"),
    ],
)
def test_segment_rejects_output_options_before_loading_the_weights(
    model_dir, video_path, flags, message, tmp_path, capsys
):
    (tmp_path / "model").mkdir()
    shutil.copy(model_dir / "config.json", tmp_path / "model")
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    paths = {"file": tmp_path / "file", "folder": tmp_path / "folder.mp4"}
    flags = [str(flag).format(**paths) for flag in flags]
    arguments = ["segment", video_path, "-o", tmp_path / "out.mp4", "--model", tmp_path / "model", *flags]
    assert message in error_of(arguments, capsys)


def test_segment_requires_an_output(video_path, capsys):
    error = error_of(["segment", video_path, "--model", "no_model"], capsys)
    assert "At least one output must be given" in error


@pytest.fixture
def broken_model(model_dir, tmp_path):
    """A copy of the model to damage."""
    return shutil.copytree(model_dir, tmp_path / "broken")


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 9), "which cannot be loaded: "),
        (lambda folder: (folder / "model.safetensors").unlink(), "which cannot be loaded: "),
        (lambda folder: (folder / "config.json").write_text("{"), "which cannot be loaded: "),
        (lambda folder: (folder / "video_preprocessor_config.json").unlink(), "which cannot be loaded: "),
        (lambda folder: edit_config(folder, num_frames="two"), "'num_frames' expected int, got str"),
        (lambda folder: edit_config(folder, matching_rounds=7), "`matching_rounds` must be 1 or 2. Got 7"),
        (lambda folder: edit_config(folder, num_queries=5), "must fit the configuration. Got `"),
        (
            lambda folder: edit_weights(folder, lambda weights: weights.pop("class_predictor.weight")),
            "Got none for 1 parameters, the first `class_predictor.weight`",
        ),
    ],
    ids=["junk", "no_weights", "no_json", "no_processor", "type", "range", "shapes", "incomplete"],
)
def test_segment_rejects_a_damaged_or_incomplete_model(broken_model, damage, message, video_path, tmp_path, capsys):
    damage(broken_model)
    output = tmp_path / "out.mp4"
    error = error_of(["segment", video_path, "-o", output, "--model", broken_model, "--device", "cpu"], capsys)
    assert message in error and str(broken_model) in error
    assert not output.exists()


def test_debug_shows_the_traceback(model_dir, tmp_path):
    arguments = ["segment", tmp_path / "missing.mp4", "-o", tmp_path / "out.mp4", "--model", model_dir, "--debug"]
    with pytest.raises(FileNotFoundError):
        main([str(argument) for argument in arguments])


def test_evaluate_scores_perfect_label_maps_with_1(dataset, tmp_path, capsys):
    root, predictions = dataset
    report = tmp_path / "scores" / "report.json"
    assert main(["evaluate", "--predictions", str(predictions), "--data", str(root), "--json", str(report)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["2", "videos,", "26", "frames"]
    assert lines[1:3] == [["mIoU", "wIoU", "aAcc", "mAcc", "VC8", "VC16"], ["1.0000"] * 6]
    assert lines[-3:] == [["sky", "1.0000"], ["meadow", "1.0000"], ["never_seen", "-"]]
    scores = json.loads(report.read_text())
    names = ("mean_iou", "weighted_iou", "pixel_accuracy", "mean_accuracy", "vc8", "vc16")
    assert [scores[name] for name in names] == [1.0] * 6
    assert scores["per_class_iou"] == {"sky": 1.0, "meadow": 1.0, "never_seen": None}


def test_evaluate_iou_matches_pixel_counts(dataset, tmp_path, capsys):
    root, predictions = dataset
    intersection = union = 0
    for path in predictions.rglob("*.png"):
        Image.fromarray(np.zeros((8, 12), dtype=np.uint8)).save(path)
        mask = np.asarray(Image.open(root / "data" / path.parent.name / "mask" / path.name))
        intersection += (mask == 1).sum()
        union += (mask != 0).sum()
    report = tmp_path / "report.json"
    assert main(["evaluate", "--predictions", str(predictions), "--data", str(root), "--json", str(report)]) == 0
    scores = json.loads(report.read_text())
    assert scores["per_class_iou"]["sky"] == pytest.approx(intersection / union)
    assert scores["mean_iou"] == pytest.approx(intersection / union / 2)


def test_evaluate_accepts_raw_ids(dataset, capsys):
    root, _ = dataset
    raw_predictions = root / "masks_as_predictions"
    for path in (root / "data").rglob("mask/*.png"):
        target = raw_predictions / path.parent.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    arguments = ["evaluate", "--predictions", str(raw_predictions), "--data", str(root), "--prediction-ids", "raw"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["1.0000"] * 6


def test_evaluate_warns_when_predictions_look_like_raw_ids(dataset, tmp_path, capsys, caplog):
    root, predictions = dataset
    for path in (root / "data").rglob("mask/*.png"):
        mask = np.asarray(Image.open(path)).clip(1)  # no pixel has the highest raw id
        Image.fromarray(mask).save(path)
        Image.fromarray(mask).save(predictions / path.parent.parent.name / path.name)
    assert main(["evaluate", "--predictions", str(predictions), "--data", str(root)]) == 0
    (warning,) = caplog.messages
    assert "as raw ids 100% would: see `--prediction-ids`." in warning
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "class index k is raw id k + 1 (default: reduced)" in " ".join(capsys.readouterr().out.split())


def test_evaluate_rejects_unusable_files_by_name(dataset, capsys):
    root, predictions = dataset

    def error(folder, data, *options):
        return error_of(["evaluate", "--predictions", folder, "--data", data, *options], capsys)

    assert "nowhere, which is not a folder" in error(predictions, root / "nowhere")
    assert "`--json` must lie in" in error(predictions, root, "--json", root / "val.txt" / "scores.json")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "binary.txt must be a text file" in error(predictions, root, "--split", "binary")
    assert "test" in error(predictions, root, "--split", "test")
    assert "nowhere" in error(root / "nowhere", root)
    (predictions / "b" / "3.png").unlink()
    assert "b/3.png" in error(predictions, root)


def test_convert_rejects_a_file_that_is_not_a_checkpoint(tmp_path, capsys):
    missing = error_of(["convert", tmp_path / "missing.pth", tmp_path / "out"], capsys)
    assert "missing.pth" in missing
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert "text.pth" in error_of(["convert", tmp_path / "text.pth", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_version_and_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"themask {version('transformers-themask')}\n"
    with pytest.raises(SystemExit) as stop:
        main(["segment", "clip.mp4"])
    assert stop.value.code == 2


def test_segment_rejects_outputs_inside_its_input_or_another_output(
    model_dir, frame_folder, video_path, tmp_path, capsys
):
    def error(source, *arguments):
        return error_of(["segment", source, "--model", model_dir, "--device", "cpu", *arguments], capsys)

    assert "must not lie among the frames of the input" in error(frame_folder, "-o", frame_folder / "out.mp4")
    labels = tmp_path / "labels"
    inside = error(video_path, "--labels", labels, "--statistics", labels / "classes.csv")
    assert "`--statistics` must not lie in the folder of `--labels`" in inside


@pytest.mark.parametrize(
    ("option", "values", "rule"),
    [
        ("--frame-rate", ["1/0", "0", "1e12", "1/1000000", "fast"], "must be between 1/1000 and 1000. Got {value}."),
        ("--alpha", ["2", "-0.1", "nan", "half"], "must be between 0 and 1. Got {value}."),
        ("--num-frames", ["0", "-1"], "must be at least 1. Got {value}."),
        ("--frame-stride", ["0"], "must be at least 1. Got {value}."),
        ("--max-frames", ["0"], "must be at least 1. Got {value}."),
        ("--max-frames", ["2.5", "all"], "must be a whole number. Got {value}."),
        ("--tta", ["small,large", ""], "must be numbers separated by commas, such as 0.9,1.0,1.1,1.2. Got {value}."),
        ("--palette", ["pink"], "invalid choice: '{value}' (choose from "),
        ("--frame", ["-1"], "must be at least 0. Got {value}."),
        ("--minimum-share", ["2"], "must be between 0 and 1. Got {value}."),
    ],
)
def test_options_reject_impossible_values(option, values, rule, capsys):
    command = {"--frame": "queries", "--minimum-share": "correct"}.get(option, "segment")
    for value in values:
        with pytest.raises(SystemExit, match="2"):
            main([command, f"{option}={value}"])
        assert f"argument {option}: {rule.format(value=value)}" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_removes_its_output_and_exits_with_the_signal(
    number, code, video_path, model_dir, tmp_path, monkeypatch, capsys
):
    def write(self, frame, write=OverlayVideo.write):
        write(self, frame)
        if frame.index == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(OverlayVideo, "write", write)
    before = signal.getsignal(signal.SIGTERM)
    arguments = ["segment", video_path, "-o", tmp_path / "out.mp4", "--model", model_dir, "--device", "cpu"]
    assert main([str(argument) for argument in arguments]) == code
    assert "interrupted; unfinished output has been removed" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before

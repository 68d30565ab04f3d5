# SPDX-License-Identifier: Apache-2.0
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from themask_command import main
from tiny_vlm import VOCABULARY, answering_vlm, save_vlm
from transformers_themask.mvc.vision_language import MAX_NEW_TOKENS
from transformers_themask.videos.video_reader import VideoReader

CLASS_NAMES = ["sky", "river", "lake", "sea", "water", "grass"]
SKY, RIVER, LAKE, SEA, WATER, GRASS = range(6)
LAKE_ANSWER, NO_ANSWER = "It is a lake .", "It is a lake or sea ."
NUM_FRAMES = 3


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return save_vlm(tmp_path_factory.mktemp("vlm") / "lake", answering_vlm(LAKE_ANSWER))


@pytest.fixture
def data_set(tmp_path):
    """Two videos in VSPW layout and label maps of them: river and lake compete in `a`, nothing in `b`."""
    root, labels = tmp_path / "data_set", tmp_path / "labels"
    rng = np.random.default_rng(0)
    for video, classes in (("a", [SKY, RIVER, LAKE, WATER]), ("b", [SKY, SEA, GRASS])):
        for folder in (root / "data" / video / "origin", root / "data" / video / "mask", labels / video):
            folder.mkdir(parents=True)
        for index in range(NUM_FRAMES):
            frame = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
            Image.fromarray(frame).save(root / f"data/{video}/origin/{index}.png")
            Image.new("L", (12, 8), 1).save(root / f"data/{video}/mask/{index}.png")
            label_map = rng.choice(np.array(classes, dtype=np.uint8), (8, 12))
            Image.fromarray(label_map).save(labels / video / f"{index}.png")
    (root / "val.txt").write_text("a\nb\n")
    ids = {name: str(index + 1) for index, name in enumerate(CLASS_NAMES)}
    (root / "label_num_dic_final.json").write_text(json.dumps({**ids, "others": "0"}))
    return root, labels


@pytest.fixture
def names_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(CLASS_NAMES) + "\n")
    return path


def run(*arguments):
    return main(["correct", *map(str, arguments), "--device", "cpu"])


def error_of(capsys, *arguments):
    """The error message of the command."""
    assert run(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("themask correct: ")
    return error


def read(folder):
    return np.array([np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def files_in(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_data_set_is_corrected_to_the_answer(data_set, vlm, tmp_path, capsys):
    root, labels = data_set
    output = tmp_path / "out"
    assert run(labels, "--data", root, "--vlm", vlm, "-o", output) == 0
    before = read(labels / "a")
    members = (before == RIVER) | (before == LAKE) | (before == WATER)
    assert np.array_equal(read(output / "a"), np.where(members, LAKE, before))
    assert files_in(output / "b") == files_in(labels / "b")
    num_pixels = ((before == RIVER) | (before == WATER)).sum()
    assert capsys.readouterr().out.splitlines() == [
        f'a, water: "{LAKE_ANSWER}" -> lake, {num_pixels} pixels in 3 frames changed',
        f"{output}: 2 videos, 1 question, 1 decided",
        f"log: {tmp_path / 'out_log'}",
    ]
    [entry] = json.loads((tmp_path / "out_log" / "corrections.json").read_text())
    assert (entry["answer"], entry["model"], entry["num_pixels"]) == (LAKE_ANSWER, str(vlm), num_pixels)
    shown = np.array(Image.open(tmp_path / "out_log" / "a" / "water.png"))
    largest = members.sum((1, 2)).argmax()
    assert entry["frame_index"] == largest
    assert np.array_equal(shown, np.array(Image.open(root / f"data/a/origin/{largest}.png")))


def test_ambiguous_answer_changes_nothing(data_set, tmp_path, capsys):
    root, labels = data_set
    vlm = save_vlm(tmp_path / "vlm", answering_vlm(NO_ANSWER))
    assert run(labels, "--data", root, "--vlm", vlm, "-o", tmp_path / "out", "--log", tmp_path / "log") == 0
    assert files_in(tmp_path / "out") == files_in(labels)
    assert capsys.readouterr().out.splitlines()[0] == f'a, water: "{NO_ANSWER}" -> unchanged'
    [entry] = json.loads((tmp_path / "log" / "corrections.json").read_text())
    assert entry["answer"] == NO_ANSWER and entry["decision"] is None


def test_dry_run_writes_no_label_maps(data_set, vlm, tmp_path, capsys):
    root, labels = data_set
    arguments = (labels, "--data", root, "--vlm", vlm, "-o", tmp_path / "out")
    before = set(tmp_path.iterdir())
    assert run(*arguments, "--dry-run") == 0
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out_dry_run_log"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("would change") and printed[1] == "dry run: 2 videos, 1 question, 1 decided"
    assert run(*arguments) == 0
    assert capsys.readouterr().out.splitlines()[0] == printed[0].replace("would change", "changed")


@pytest.mark.parametrize("is_model", [False, True], ids=["text file", "saved model"])
def test_single_video_is_corrected(video_path, vlm, names_file, tmp_path, capsys, is_model):
    labels, names = tmp_path / "labels", names_file
    labels.mkdir()
    if is_model:
        names = tmp_path / "model"
        names.mkdir()
        (names / "config.json").write_text(json.dumps({"id2label": dict(enumerate(CLASS_NAMES))}))
    before = np.random.default_rng(0).choice(np.array([SKY, SEA, RIVER], dtype=np.uint8), (11, 36, 50))
    for index, label_map in enumerate(before):
        Image.fromarray(label_map).save(labels / f"{index:08d}.png")
    arguments = (labels, "--video", video_path, "--class-names", names, "--vlm", vlm, "-o", tmp_path / "out")
    assert run(*arguments) == 0
    assert np.array_equal(read(tmp_path / "out"), np.where(before > SKY, LAKE, SKY))
    assert capsys.readouterr().out.startswith(f'water: "{LAKE_ANSWER}" -> lake, {(before > SKY).sum()} pixels in 11 ')
    shown = np.array(Image.open(tmp_path / "out_log" / "water.png"))
    frames = list(VideoReader(video_path))
    assert np.array_equal(shown, frames[(before > SKY).sum((1, 2)).argmax()])


def test_groups_and_minimum_share_select_the_questions(data_set, tmp_path, capsys):
    root, labels = data_set
    vlm = save_vlm(tmp_path / "vlm", answering_vlm("sea"))
    groups = tmp_path / "groups.yaml"
    groups.write_text("blue: [sky, sea]\n")
    assert run(labels, "--data", root, "--vlm", vlm, "--groups", groups, "-o", tmp_path / "out") == 0
    before = read(labels / "b")
    assert np.array_equal(read(tmp_path / "out" / "b"), np.where(before == SKY, SEA, before))
    assert files_in(tmp_path / "out" / "a") == files_in(labels / "a")  # where there is no sea
    capsys.readouterr()
    arguments = (labels, "--data", root, "--vlm", vlm, "--minimum-share", 0.99, "-o", tmp_path / "none")
    assert run(*arguments) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'none'}: 2 videos, 0 questions, 0 decided")
    assert files_in(tmp_path / "none") == files_in(labels)


def test_long_answers_are_truncated_in_the_report(data_set, tmp_path, capsys):
    root, labels = data_set
    model = answering_vlm("water")
    output = model.get_output_embeddings().weight.data
    output[:, VOCABULARY["water"]] = output[:, VOCABULARY[":"]]  # after "water" comes "water"
    assert run(labels, "--data", root, "--vlm", save_vlm(tmp_path / "vlm", model), "-o", tmp_path / "out") == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith(f'a, water: "{"water " * 16}wate" -> unchanged')
    [entry] = json.loads((tmp_path / "out_log" / "corrections.json").read_text())
    assert entry["answer"] == " ".join(["water"] * MAX_NEW_TOKENS)


def test_invalid_arguments_are_rejected(data_set, vlm, names_file, video_path, tmp_path, capsys, monkeypatch):
    root, labels = data_set
    output = tmp_path / "out"
    data = ("--data", root, "--vlm", vlm)
    before = set(tmp_path.iterdir())

    def error(*arguments):
        sentence = error_of(capsys, *arguments, *(() if "-o" in arguments else ("-o", output)))
        assert set(tmp_path.iterdir()) == before
        return sentence

    assert f"{tmp_path / 'none' / 'a'} must be a folder of label maps" in error(tmp_path / "none", *data)
    assert f"`--output` must differ from the input. Got {labels}" in error(labels, *data, "-o", labels)
    assert "`--output` must be a new or empty folder." in error(labels, *data, "-o", root)
    assert "`--log` must be a new or empty folder." in error(labels, *data, "--log", root)
    for folders in ((output, output), (output, output / "log"), (output / "labels", output)):
        assert "`--output` and `--log` must be folders side by side." in error(
            labels, *data, "-o", folders[0], "--log", folders[1]
        )
    assert "`--class-names` must be given with `--video`" in error(labels, "--video", video_path, "--vlm", vlm)
    assert "left out with `--data`" in error(labels, *data, "--class-names", names_file)
    assert "`--vlm` must be a folder with a saved image-text-to-text model." in error(
        labels, "--data", root, "--vlm", tmp_path / "none"
    )
    assert "must be a YAML file of groups" in error(labels, *data, "--groups", tmp_path / "none")
    assert "`split` must name a split file" in error(labels, *data, "--split", "test")
    capture = SimpleNamespace(isOpened=lambda: True, get=lambda _: 30.0, release=lambda: None)
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda _: capture))
    camera = ("--video", "0", "--class-names", names_file, "--vlm", vlm)
    assert "must be a video that can be read again. Got camera 0" in error(labels, *camera)
    assert f"{labels / 'a' / '00000000.png'} must exist" in error(
        labels / "a", "--video", video_path, "--class-names", names_file, "--vlm", vlm
    )
    for both in (("--video", video_path, *data), ("--vlm", vlm)):
        with pytest.raises(SystemExit):
            run(labels, *both, "-o", output)


def test_incomplete_class_names_are_rejected(data_set, vlm, video_path, tmp_path, capsys):
    _, labels = data_set
    model, file = tmp_path / "model", tmp_path / "names"
    model.mkdir()

    def error(path):
        return error_of(
            capsys, labels, "--video", video_path, "--class-names", path, "--vlm", vlm, "-o", tmp_path / "out"
        )

    for text in ("river\n\nlake\n", "river\nlake\nriver\n", ""):
        file.write_text(text)
        assert f"{file}: `--class-names` must give every class a distinct name" in error(file)
    for config in ("{}", "[]", '{"id2label": {"1": "sea", "2": "lake"}}'):
        (model / "config.json").write_text(config)
        assert f"{model}: `--class-names` must be a model whose configuration names its classes" in error(model)
    (model / "config.json").write_text("{")
    assert error(model).startswith(f"themask correct: {model}: ")
    assert "must be a text file. Got no such file" in error(tmp_path / "none")
    file.write_bytes("\ufeffsky\r\nroad\r\n".encode())  # a name may be anything else
    assert "Group `water` must have at least 2 classes of the data set." in error(file)

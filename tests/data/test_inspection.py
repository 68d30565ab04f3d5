# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from themask_command import main
from transformers_themask.data.inspection import inspect_data_set

NUM_PIXELS = 24 * 32


def save_mask(path, value=1, size=(24, 32)):
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


@pytest.fixture
def damaged_root(vspw_root):
    """The training split with one fault of each kind."""
    data = vspw_root / "data"
    whole = data / "a" / "origin" / "00000008.jpg"
    whole.write_bytes(whole.read_bytes()[:-200])  # the header is whole, the picture is not
    (data / "a" / "mask" / "00000009.png").write_bytes(b"junk")
    save_mask(data / "a" / "mask" / "00000010.png", 9)
    Image.new("RGB", (40, 24)).save(data / "a" / "origin" / "00000011.jpg")
    save_mask(data / "b" / "mask" / "00000007.png", size=(24, 30))
    for folder in ("origin", "mask"):
        path = data / "b" / folder / "00000009.png"
        path.rename(path.with_name("00000019.png"))
    (data / "c" / "mask" / "00000007.png").unlink()
    return vspw_root


def check(*arguments):
    return main(["data", "check", *map(str, arguments)])


def test_report_of_a_valid_data_set(vspw_root, capsys, tmp_path):
    assert check(vspw_root, "--json", tmp_path / "new" / "report.json") == 0
    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert lines[0] == ["VSPW,", "2", "classes"]
    assert lines[2:] == [["train", "2", "8", "8", "2", "24x32", "(2)"], ["val", "1", "4", "4", "2", "24x32", "(1)"]]
    assert "8/8" in captured.err and "4/4" in captured.err
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert not report["stops_run"] and report["class_names"] == ["left", "right"]
    train = report["splits"]["train"]
    assert train["class_pixels"] == {"left": 4 * NUM_PIXELS, "right": 4 * NUM_PIXELS} and train["void_pixels"] == 0
    assert train["sizes"] == [{"height": 24, "width": 32, "num_videos": 2}] and train["findings"] == []


def test_every_problem_is_one_line_and_exit_code_1(damaged_root, capsys):
    assert check(damaged_root) == 1
    output = capsys.readouterr().out
    lines = [line.removeprefix("train: error: ") for line in output.splitlines() if line.startswith("train: error")]
    assert len(lines) == 5
    faults = ("08.jpg must be readable", "09.png must be readable", "10.png must hold raw ids from 0 to 2", "11.jpg")
    for line, fault in zip(lines, (*faults, "b/mask/00000007.png must have its frame's size"), strict=True):
        assert fault in line
    assert "Got (24, 40)" in lines[3]
    assert "train: note: Video b: frame numbers go from 8 to 19, where the usual step is" in output
    assert "val: error: Every frame in" in output and "Got no mask for '00000007'" in output
    assert "val: error: The split val must have at least one frame" in output


def test_inspection_of_one_split(damaged_root, vspw_root, capsys):
    (vspw_root / "other.txt").write_text("b\n")
    save_mask(vspw_root / "data" / "b" / "mask" / "00000007.png")
    assert check(damaged_root, "--split", "other") == 0
    assert "note: Video b" in capsys.readouterr().out


def test_damaged_frames_can_be_written_to_the_skip_list(vspw_root, capsys):
    (vspw_root / "data" / "a" / "origin" / "00000008.jpg").write_bytes(b"junk")
    (vspw_root / "data" / "b" / "mask" / "00000009.png").write_bytes(b"junk")
    (vspw_root / "skip.txt").write_text("c/00000010")
    (vspw_root / "tiny.txt").write_text("a")  # also finds the damaged frame of a
    assert check(vspw_root) == 1
    assert check(vspw_root, "--skip-damaged") == 0
    assert f"{vspw_root / 'skip.txt'}: 2 added" in capsys.readouterr().out
    assert (vspw_root / "skip.txt").read_text() == "c/00000010\na/00000008\nb/00000009\n"
    assert check(vspw_root) == 0
    assert "train: note: " + str(vspw_root / "skip.txt") + " leaves out 2 frames." in capsys.readouterr().out


def test_problems_other_than_damage_are_not_skipped(damaged_root):
    assert check(damaged_root, "--skip-damaged") == 1
    assert (damaged_root / "skip.txt").read_text() == "a/00000008\na/00000009\n"


def test_unreadable_video_file_is_skipped_as_a_whole(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "train" / "good" / "frames").mkdir(parents=True)
    (tmp_path / "train" / "good" / "masks").mkdir()
    Image.new("RGB", (32, 24)).save(tmp_path / "train" / "good" / "frames" / "0.png")
    save_mask(tmp_path / "train" / "good" / "masks" / "0.png")
    (tmp_path / "train" / "bad.mp4").write_bytes(b"junk")
    inspection = inspect_data_set(tmp_path)
    assert inspection.stops_run and inspection.damaged == ["bad"]
    (tmp_path / "train" / "context" / "frames").mkdir(parents=True)
    Image.new("RGB", (32, 24)).save(tmp_path / "train" / "context" / "frames" / "0.png")
    (tmp_path / "skip.txt").write_text("bad\n")
    notes = [finding.message for finding in inspect_data_set(tmp_path).splits[0].findings]
    assert notes[1:] == ["Video context has no labels: training rejects it unless skip.txt names it."]
    assert not inspect_data_set(tmp_path).stops_run


def test_a_split_without_labels_is_usable(vspw_root, capsys):
    for path in (vspw_root / "data" / "c" / "mask").iterdir():
        path.unlink()
    (vspw_root / "data" / "c" / "mask").rmdir()
    assert check(vspw_root, "--split", "val") == 0
    assert "val: note: The split val has no labels" in capsys.readouterr().out


def test_long_lists_end_with_a_count(vspw_root, capsys):
    for index in range(20, 80):
        Image.new("RGB", (32, 24)).save(vspw_root / "data" / "a" / "origin" / f"{index:08d}.jpg")
        save_mask(vspw_root / "data" / "a" / "mask" / f"{index:08d}.png", 7)
    assert check(vspw_root, "--split", "train") == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("train: error") for line in lines) == 50
    assert lines[-1] == "and 11 more; `--json FILE` writes all of them"  # ten masks, one gap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere"], "must be a folder of labelled videos"),
        (["{root}/data"], "must hold one of label_num_dic_final.json (VSPW)"),
        (["{root}", "--split", "test"], "Got 'test'; available: train, val"),
        (["{root}", "--json", "{root}/train.txt/report.json"], "`--json` must lie in a folder"),
    ],
)
def test_wrong_path_is_an_error_of_one_line(vspw_root, capsys, arguments, message):
    assert check(*(argument.format(root=vspw_root) for argument in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("themask data check: ") and message in line

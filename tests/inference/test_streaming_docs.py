# SPDX-License-Identifier: Apache-2.0
"""What docs/streaming.md shows can be done."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from themask_command import command_parser
from themask_command.commands import COMMANDS
from transformers_themask.sinks.label_track import read_label_track

PAGE = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_of_the_page_run_one_after_the_other(
    model_dir, video_path, frames, tmp_path, monkeypatch, capsys
):
    shutil.copytree(model_dir, tmp_path / "model")
    shutil.copy(video_path, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    height, width = frames.shape[1:3]
    assert [line for line in printed if line.endswith("uint8")] == [
        f"{index} ({height}, {width}) uint8" for index in range(len(frames))
    ]
    assert len(list(read_label_track("labels.mkv"))) == len(frames)
    assert Path("classes.csv").read_text().startswith("frame,time,class_index,class_name,pixels,share")


@pytest.mark.parametrize(
    "line", [line for block in blocks("bash") for line in block.splitlines() if "themask " in line]
)
def test_the_commands_of_the_page_are_understood(line):
    program, *arguments = shlex.split(line)
    assert program == "themask"
    assert command_parser().parse_args(arguments).command in COMMANDS


def test_the_pictures_of_the_page_are_there():
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / target).is_file()

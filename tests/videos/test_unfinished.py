# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from transformers_themask.videos.unfinished import UnfinishedFile, make_hidden


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stem", ["a", "a" * 246, "é" * 123, "a.b"], ids=["short", "long", "accents", "dot"])
def test_a_file_takes_its_name_when_it_is_complete(tmp_path, stem):
    path = tmp_path / "new" / f"{stem}.mp4"
    with UnfinishedFile(path) as hidden:
        hidden.write_text("new")
        assert hidden.parent == path.parent and hidden.suffix == ".mp4"
        assert hidden.name.startswith(".") and len(hidden.name) < 50
        assert not path.exists()
    assert names(path.parent) == [path.name] and path.read_text() == "new"


def test_an_error_keeps_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("earlier")
    with pytest.raises(RuntimeError), UnfinishedFile(tmp_path / "a.txt") as hidden:
        hidden.write_text("new")
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "earlier"


def test_a_file_that_cannot_be_closed_is_removed(tmp_path):
    def close():
        raise OSError("No space left on device")

    unfinished = UnfinishedFile(tmp_path / "a.txt")
    unfinished.make()
    unfinished.remove(close)
    assert not names(tmp_path)


def test_nothing_happens_to_what_was_not_made_or_is_finished(tmp_path):
    unfinished = UnfinishedFile(tmp_path / "a.txt")
    unfinished.finish()
    unfinished.remove()
    assert not names(tmp_path)
    unfinished.make()
    unfinished.finish()
    unfinished.remove()
    assert names(tmp_path) == ["a.txt"]


def test_a_name_that_is_taken_is_left_alone(tmp_path):
    tried = []

    def make(path: Path):
        tried.append(path)
        if len(tried) == 1:
            path.write_text("the user's")
        path.mkdir()

    made = make_hidden(tmp_path / "labels", make)
    assert made == tried[1] and made.is_dir()
    assert tried[0].read_text() == "the user's"


def test_a_second_interruption_leaves_nothing_behind(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    file = UnfinishedFile(tmp_path / "out.txt")
    file.make().write_text("half")
    with pytest.raises(KeyboardInterrupt):
        file.remove(interrupted)
    assert list(tmp_path.iterdir()) == []

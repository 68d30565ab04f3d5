# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_themask.files.atomic import AtomicFile, AtomicFolder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stem", ["a", "a" * 246, "é" * 123, "a.b"], ids=["short", "long", "accents", "dot"])
def test_file_appears_when_complete(tmp_path, stem):
    path = tmp_path / "new" / f"{stem}.mp4"
    with AtomicFile(path) as hidden:
        hidden.write_text("new")
        assert hidden.parent == path.parent and hidden.suffix == ".mp4"
        assert hidden.name.startswith(".") and len(hidden.name) < 50
        assert not path.exists()
    assert names(path.parent) == [path.name] and path.read_text() == "new"


def test_error_keeps_the_earlier_file(tmp_path):
    (tmp_path / "a.txt").write_text("earlier")
    with pytest.raises(RuntimeError), AtomicFile(tmp_path / "a.txt") as hidden:
        hidden.write_text("new")
        raise RuntimeError
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "earlier"


def test_file_that_cannot_be_closed_is_removed(tmp_path):
    def close():
        raise OSError("No space left on device")

    unfinished = AtomicFile(tmp_path / "a.txt")
    unfinished.make()
    unfinished.remove(close)
    assert not names(tmp_path)


def test_second_interruption_leaves_no_files(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    file = AtomicFile(tmp_path / "out.txt")
    file.make().write_text("half")
    with pytest.raises(KeyboardInterrupt):
        file.remove(interrupted)
    assert not names(tmp_path)


def test_finish_and_remove_are_no_ops_before_make_and_after_finish(tmp_path):
    unfinished = AtomicFile(tmp_path / "a.txt")
    unfinished.finish()
    unfinished.remove()
    assert not names(tmp_path)
    unfinished.make()
    unfinished.finish()
    unfinished.remove()
    assert names(tmp_path) == ["a.txt"]


def test_taken_hidden_name_is_left_alone(tmp_path, monkeypatch):
    tokens = iter(["taken", "taken", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda num_bytes: next(tokens))
    taken = AtomicFile(tmp_path / "a.txt").make()
    taken.write_text("the user's")
    assert "free" in AtomicFile(tmp_path / "a.txt").make().name
    assert taken.read_text() == "the user's"


def test_folder_appears_when_complete_and_replaces_an_earlier_one_only_then(tmp_path):
    target = tmp_path / "deep" / "a.mp4"
    with AtomicFolder(target) as folder:
        (folder / "old").touch()
        assert not target.exists()
    leftover = AtomicFolder(target).make()  # of a writer that was killed
    (leftover / "half").touch()
    with pytest.raises(KeyboardInterrupt), AtomicFolder(target, replace=True) as folder:
        (folder / "new").touch()
        raise KeyboardInterrupt
    assert names(target) == ["old"]
    with AtomicFolder(target, replace=True) as folder:
        (folder / "new").touch()
    assert names(target) == ["new"] and names(target.parent) == ["a.mp4"]


def test_folder_with_content_is_replaced_on_demand_only(tmp_path):
    target = tmp_path / "a"
    target.mkdir()
    with pytest.raises(OSError, match="not empty"), AtomicFolder(target) as folder:
        (folder / "new").touch()
        (target / "mine").touch()  # appears in the meantime
    assert names(tmp_path) == ["a"] and names(target) == ["mine"]


def test_folder_name_may_be_as_long_as_a_file_system_allows(tmp_path):
    with AtomicFolder(tmp_path / ("b" * 251 + ".mp4")) as folder:
        (folder / "new").touch()
    assert (tmp_path / ("b" * 251 + ".mp4") / "new").is_file()

# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_themask.sinks.output_folder import check_new_folder, check_output_folder


def test_a_folder_that_can_be_made_passes_and_is_not_made(tmp_path):
    check_output_folder("output", tmp_path / "new" / "deep")
    check_output_folder("output", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match=rf"`output` must lie in a folder .* Got {path / below} \(Not a directory"):
        check_output_folder("output", path / below)


def test_a_new_folder_holds_nothing_yet(tmp_path):
    check_new_folder("output", tmp_path / "new")
    check_new_folder("output", tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(
        ValueError, match=rf"`output` must be a new or empty folder. Got {tmp_path}, .* Remove them or"
    ):
        check_new_folder("output", tmp_path)
    with pytest.raises(ValueError, match="in a folder that can be written to"):
        check_new_folder("output", tmp_path / "a.png")

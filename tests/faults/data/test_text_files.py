# SPDX-License-Identifier: Apache-2.0
"""Anything read from a text file is a value of the expected type, or one sentence that names the file."""

import json
import os

import pytest

from transformers_themask.config_overrides import mapping_from_text
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.data.vspw import split_names
from transformers_themask.files import text_files
from transformers_themask.files.text_files import read_json, read_lines, read_yaml
from transformers_themask.mvc.confusable_groups import read_groups
from transformers_themask.publishing.results import read_results
from transformers_themask.training.checkpoints import SEAL_FILE, checkpoint_damage, require_same_recipe, write_recipe
from transformers_themask.training.recipe_files import read_with_bases

NESTED = 200_000
JSON = {
    "nested": "[" * NESTED,
    "closed": '{"a":' * NESTED + "1" + "}" * NESTED,
    "infinite": '{"a": Infinity}',
    "not a number": '{"a": NaN}',
    "repeated": '{"a": 1, "a": 2}',
    "truncated": '{"a": 1',
    "list": "[]",
    "null": "null",
    "number": "1",
    "empty": "",
}
YAML = {
    "nested": "[" * 20_000,
    "itself": "a: &x {b: *x}",
    "bomb": "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
    "repeated": "a: 1\na: 2",
    "list as a name": "? [1]\n: 2",
    "object": "a: !!python/object/apply:os.system ['true']",
    "tabs": "a:\n\t- b",
    "control": "a: \x07",
    "no integer": "a: !!int ''",
    "no boolean": "a: !!bool x",
    "no time": "a: !!timestamp x",
    "set as a name": "? !!set {a}\n: 1",
    "list as a set": "!!set [a]",
}
READERS = [
    read_results,
    lambda path: read_json(path, dict),
    lambda path: load_videos(path.parent, "val"),
]


def only_sentence(function, path):
    with pytest.raises((ValueError, OSError)) as caught:
        function(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


@pytest.mark.parametrize("content", JSON.values(), ids=JSON)
@pytest.mark.parametrize("reader", READERS, ids=["results", "mapping", "classes"])
def test_invalid_json_is_one_sentence(reader, content, tmp_path):
    path = tmp_path / "label_num_dic_final.json"
    path.write_text(content)
    only_sentence(reader, path)


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
@pytest.mark.parametrize("reader", [read_with_bases, read_groups, lambda path: read_yaml(path, dict)])
def test_invalid_yaml_is_one_sentence(reader, content, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(content)
    only_sentence(reader, path)


@pytest.mark.parametrize("text", [*YAML.values(), "[1]", "1", ""])
def test_invalid_overrides_are_one_sentence(text):
    with pytest.raises(ValueError, match=r"^`config_overrides` must be a mapping.*[^\n]*$"):
        mapping_from_text("config_overrides", text)


def test_bytes_that_are_not_text_folders_pipes_and_huge_files_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(text_files, "MAX_BYTES", 10)
    (tmp_path / "huge").write_text("a" * 11)
    for name in ("bytes", "folder", "pipe", "huge", "missing"):
        only_sentence(read_lines, tmp_path / name)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path):
    (tmp_path / "lines").write_bytes("\ufeffa\r\n b \r\n\r\nc\n\n".encode())
    assert read_lines(tmp_path / "lines") == ["a", "b", "", "c"]


def test_infinity_in_the_recipe_of_a_checkpoint_is_read(tmp_path):
    recipe = {"max_grad_norm": float("inf")}
    write_recipe(recipe, tmp_path)
    require_same_recipe(tmp_path, recipe)
    with pytest.raises(ValueError, match=r"Got `max_grad_norm` = inf there and 1\.0 here"):
        require_same_recipe(tmp_path, {"max_grad_norm": 1.0})


def test_pipes_beside_split_files_are_passed_over(tmp_path):
    write_synthetic_dataset(tmp_path / "root", num_train_videos=1, num_val_videos=1, num_frames=2, size=(16, 24))
    os.mkfifo(tmp_path / "root" / "pipe.txt")
    assert split_names(tmp_path / "root") == ["train", "val"]


@pytest.mark.parametrize("seal", ["[]", "null", '{"a": "1"}', '{"a": -1}', "{", '{"../a": 1}', '{"/etc/passwd": 1}'])
def test_a_checkpoint_with_an_invalid_seal_is_damaged(seal, tmp_path):
    (tmp_path / SEAL_FILE).write_text(seal)
    assert checkpoint_damage(tmp_path) is not None


def test_valid_files_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, None, {"b": "c"}]}))
    (tmp_path / "a.yaml").write_text("a: [1, null, {b: c}]  # comment\n")
    assert read_json(tmp_path / "a.json", dict) == read_yaml(tmp_path / "a.yaml", dict) == {"a": [1, None, {"b": "c"}]}

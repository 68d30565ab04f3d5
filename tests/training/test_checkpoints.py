# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tiny import tiny_config
from transformers_themask.training.checkpoints import (
    SEAL_FILE,
    WRITING_DIR,
    checkpoint_damage,
    checkpoint_to_resume,
    find_checkpoints,
    publish_checkpoint,
    seal_checkpoint,
    write_recipe,
)

RECIPE = {"learning_rate": 1e-4, "crop_size": (480, 480)}


def write_checkpoint(output_dir, step, config=None):
    folder = output_dir / WRITING_DIR / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (config or tiny_config()).save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "weights.bin").write_bytes(bytes(100))
    write_recipe(RECIPE, folder)
    seal_checkpoint(folder)
    publish_checkpoint(folder, output_dir / folder.name)
    return output_dir / folder.name


def test_last_complete_checkpoint_is_found_by_its_step(tmp_path):
    for step in (2, 10, 9):
        write_checkpoint(tmp_path, step)
    assert find_checkpoints(tmp_path) == (tmp_path / "checkpoint-10", [])
    assert find_checkpoints(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("harm", ["truncated", "missing", "unsealed", "unreadable seal"])
def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, harm):
    whole, damaged = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    if harm == "truncated":
        (damaged / "weights.bin").write_bytes(bytes(50))
    elif harm == "missing":
        (damaged / "weights.bin").unlink()
    elif harm == "unsealed":
        (damaged / SEAL_FILE).unlink()
    else:
        (damaged / SEAL_FILE).write_text("{")
    checkpoint, skipped = find_checkpoints(tmp_path)
    assert checkpoint == whole
    assert len(skipped) == 1 and str(damaged) in skipped[0] and checkpoint_damage(damaged) in skipped[0]
    with pytest.raises(ValueError, match="must be a completely written checkpoint"):
        checkpoint_to_resume(tmp_path, str(damaged), tiny_config(), RECIPE)


def test_half_written_checkpoint_is_reported_and_replaced(tmp_path):
    unfinished = tmp_path / WRITING_DIR / "checkpoint-4"
    unfinished.mkdir(parents=True)
    (unfinished / "weights.bin").write_bytes(bytes(3))
    checkpoint, skipped = find_checkpoints(tmp_path)
    assert checkpoint is None and str(unfinished) in skipped[0]
    (tmp_path / "checkpoint-6").mkdir()  # left by a crash
    again = write_checkpoint(tmp_path, 6)
    assert checkpoint_damage(again) is None and not (tmp_path / WRITING_DIR).exists()


def test_checkpoint_to_resume_from_is_the_last_or_the_one_named(tmp_path):
    assert checkpoint_to_resume(tmp_path, "auto", tiny_config(), RECIPE) == (None, [])
    last = write_checkpoint(tmp_path, 2)
    assert checkpoint_to_resume(tmp_path, "auto", tiny_config(), RECIPE) == (last, [])
    assert checkpoint_to_resume(tmp_path / "other", str(last), tiny_config(), RECIPE) == (last, [])


@pytest.mark.parametrize(
    ("wanted", "config", "recipe", "message"),
    [
        (None, {}, {}, "`output_dir` must hold no checkpoints of an earlier run"),
        ("auto", {"num_queries": 9}, {}, "The model in .* must be the one of this run. Got `num_queries` = 8 there"),
        ("auto", {}, {"learning_rate": 1.0}, "The recipe of .* Got `learning_rate` = 0.0001 there and 1.0 here"),
        ("auto", {}, {"seed": 3}, "The recipe of .* Got `seed` = None there and 3 here"),
    ],
)
def test_checkpoint_of_another_recipe_is_rejected(tmp_path, wanted, config, recipe, message):
    write_checkpoint(tmp_path, 2)
    with pytest.raises(ValueError, match=message):
        checkpoint_to_resume(tmp_path, wanted, tiny_config(**config), {**RECIPE, **recipe})


def test_folder_without_a_checkpoint_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no trainer_state\.json"):
        checkpoint_to_resume(tmp_path, str(tmp_path), tiny_config(), RECIPE)


def test_a_recipe_survives_as_json(tmp_path):
    write_recipe(RECIPE, tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"learning_rate": 1e-4, "crop_size": [480, 480]}


@pytest.mark.parametrize(
    ("earlier", "current"),
    [
        ({"freeze_pixel_level": True, "draw_distance": False}, {"freeze": ["pixel_level"], "clip_sampler": "offsets"}),
        ({"freeze_pixel_level": False, "draw_distance": True}, {"freeze": [], "clip_sampler": "pair"}),
    ],
)
def test_recipe_with_earlier_argument_names_resumes(tmp_path, earlier, current):
    write_recipe({**RECIPE, **earlier}, write_checkpoint(tmp_path, 2))
    (tmp_path / "checkpoint-2" / SEAL_FILE).unlink()
    seal_checkpoint(tmp_path / "checkpoint-2")
    checkpoint, _ = checkpoint_to_resume(tmp_path, "auto", tiny_config(), {**RECIPE, **current})
    assert checkpoint == tmp_path / "checkpoint-2"
    other = {**RECIPE, **current, "freeze": ["decoder"]}
    with pytest.raises(ValueError, match=r"Got `freeze` = \["):
        checkpoint_to_resume(tmp_path, "auto", tiny_config(), other)

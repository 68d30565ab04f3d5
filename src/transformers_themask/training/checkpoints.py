# SPDX-License-Identifier: Apache-2.0
"""Atomic checkpoint folders: written under [`WRITING_DIR`], sealed with a list of their files, then renamed.

What a crash leaves behind is recognised by its place, or by files that do not match the list.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from transformers_themask.files.atomic import publish_folder, sync
from transformers_themask.files.text_files import read_json

from .arguments import in_current_names

AUTO_RESUME = "auto"
WRITING_DIR = "_writing"
SEAL_FILE = "checkpoint_files.json"
RECIPE_FILE = "recipe.json"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")

# Fields of a configuration that may differ between a checkpoint and the run that resumes from it.
VOLATILE_FIELDS = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}


def seal_checkpoint(folder: Path) -> None:
    """Flush the files of a completely written checkpoint to the disk, and list them with their sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_FILE)
    for path in files:
        sync(path)
    seal = folder / SEAL_FILE
    seal.write_text(json.dumps({str(path.relative_to(folder)): path.stat().st_size for path in files}, indent=2))
    sync(seal)
    sync(folder)


def publish_checkpoint(writing: Path, final: Path) -> None:
    """Rename a sealed checkpoint to its final path on the same file system, replacing what a crash left there."""
    publish_folder(writing, final)
    shutil.rmtree(writing.parent, ignore_errors=True)


def checkpoint_damage(folder: Path) -> str | None:
    """Description of the damage to a checkpoint; `None` if it is complete."""
    try:
        sizes = read_json(folder / SEAL_FILE, dict)
    except (OSError, ValueError):
        return f"{SEAL_FILE}, which is written last, is missing or unreadable"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def find_checkpoints(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Find the last complete checkpoint of a run, if any, and a warning for each incomplete one that is newer."""
    folders = [path for path in output_dir.glob("checkpoint-*") if CHECKPOINT_NAME.fullmatch(path.name)]
    unfinished = sorted((output_dir / WRITING_DIR).glob("checkpoint-*"))
    skipped = [f"Skipping incomplete {path}: the run ended while it was being saved." for path in unfinished]
    for folder in sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True):
        damage = checkpoint_damage(folder)
        if damage is None:
            return folder, skipped
        skipped.append(f"Skipping incomplete {folder}: {damage}.")
    return None, skipped


def checkpoint_to_resume(
    output_dir: Path, wanted: str | None, config: PreTrainedConfig, recipe: Mapping[str, Any]
) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, `None` for a fresh start, and a warning for each incomplete one skipped.

    `wanted` is a path, `"auto"` for the last complete checkpoint in `output_dir`, if any, or `None` for a fresh start.
    A `ValueError` protects checkpoints of another run, and rejects a damaged one or one of another model or recipe; a
    `FileNotFoundError` one that does not exist.
    """
    last, skipped = find_checkpoints(output_dir)
    if wanted is None:
        if last is not None:
            raise ValueError(
                f"`output_dir` must hold no checkpoints of an earlier run. Got {last}. "
                "Give `--resume_from_checkpoint auto` to resume from it, or another `--output_dir`."
            )
        return None, []
    if wanted != AUTO_RESUME:
        last, skipped = Path(wanted), []
        _require_complete(last)
    if last is not None:
        remedy = "Resume with the recipe the checkpoint was trained with."
        saved = _without_volatile(type(config).from_pretrained(last).to_dict())
        _require_same(f"The model in {last}", saved, _without_volatile(config.to_dict()), remedy)
        require_same_recipe(last, recipe)
    return last, skipped


def write_recipe(recipe: Mapping[str, Any], folder: Path) -> None:
    """Write a run's recipe into a checkpoint."""
    (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def require_same_recipe(checkpoint: Path, recipe: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first difference, if a checkpoint was written with another recipe."""
    path = checkpoint / RECIPE_FILE
    if not path.is_file():
        return
    saved = in_current_names(read_json(path, dict, allow_constants=True))
    wanted = json.loads(json.dumps(recipe))
    _require_same(
        f"The recipe of {checkpoint}", saved, wanted, "Resume with that recipe, or give another `--output_dir`."
    )


def _require_complete(checkpoint: Path) -> None:
    if not (checkpoint / "trainer_state.json").is_file():
        raise FileNotFoundError(
            f"`resume_from_checkpoint` must be `auto` or a checkpoint folder. Got {checkpoint}, "
            "which has no trainer_state.json."
        )
    damage = checkpoint_damage(checkpoint)
    if damage is not None:
        raise ValueError(
            f"`resume_from_checkpoint` must be a completely written checkpoint. Got {checkpoint}: {damage}. "
            "Give `auto` to take the last complete one."
        )


def _require_same(subject: str, saved: Mapping[str, Any], current: Mapping[str, Any], remedy: str) -> None:
    for name in sorted(saved.keys() | current.keys()):
        if saved.get(name) != current.get(name):
            raise ValueError(
                f"{subject} must be the one of this run. Got `{name}` = {saved.get(name)!r} there and "
                f"{current.get(name)!r} here. {remedy}"
            )


def _without_volatile(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_volatile(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in VOLATILE_FIELDS
    }

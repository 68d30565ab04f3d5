# SPDX-License-Identifier: Apache-2.0
"""Result files of evaluations: scores with their model, data set, settings and versions."""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, TrainingArguments

from transformers_themask.files.text_files import read_json

RESULT_FILE = "results.json"
SCORES = ("mean_iou", "weighted_iou", "vc8", "vc16")
# Buffers of batch norms, which do not count as parameters.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
REQUIRED_FIELDS = ("data_set", "split", "num_videos", "num_frames", *SCORES, "per_class_iou", "versions")


def write_results(
    path: str | Path,
    scores: Mapping[str, Any],
    *,
    data_set: str,
    split: str,
    clips: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a result file.

    `scores` are those of [`~transformers_themask.training.evaluation.evaluate_videos`], `model` and `training` those
    of [`model_facts`] and [`training_facts`]; `clips` are the clips' `num_frames` and `frame_stride`.
    """
    facts = {
        "data_set": data_set,
        "split": split,
        "clips": None if clips is None else dict(clips),
        "model": None if model is None else dict(model),
        "recipe": None if recipe is None else Path(recipe).name,
        "training": None if training is None else dict(training),
        "versions": {name: version(name) for name in ("transformers-themask", "transformers", "torch")},
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**facts, **scores}, indent=2, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a result file; an `OSError` if it cannot be read, a `ValueError` for other content."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} must be a result file; evaluate the model first.")
    results = read_json(Path(path), dict, "be a result file in JSON")
    missing = [name for name in REQUIRED_FIELDS if name not in results]
    if isinstance(results.get("model"), dict) and "model_type" not in results["model"]:
        missing.append("model.model_type")
    if missing:
        raise ValueError(f"{path} must hold `{missing[0]}`; use the results.json of an evaluation.")
    for name in SCORES:
        if not isinstance(results[name], int | float | None) or not math.isfinite(results[name] or 0):
            raise ValueError(f"`{name}` in {path} must be a finite number or null. Got {results[name]!r}.")
    return results


def model_facts(model: PreTrainedModel, name: str, initial_weights: str | None = None) -> dict[str, Any]:
    """Facts about a model for a result file; `initial_weights` is the folder or repository that it started from."""
    architecture, num_parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
    return _facts(name, architecture, model.config, num_parameters, initial_weights)


def saved_model_facts(folder: str | Path) -> dict[str, Any]:
    """Facts as from [`model_facts`] about a saved model, read off its files; an `OSError` if one is missing."""
    config_file, weight_files = Path(folder) / "config.json", sorted(Path(folder).glob("*.safetensors"))
    if not config_file.is_file() or not weight_files:
        raise FileNotFoundError(
            f"{folder} must be the folder of a saved model. Got no config.json or no *.safetensors there."
        )
    fields = read_json(config_file, dict)
    num_parameters = sum(map(_num_saved_values, weight_files))
    (architecture,) = fields["architectures"]
    config_class = PreTrainedConfig
    if fields["model_type"] in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[fields["model_type"]]
    name = Path(folder).resolve().name
    return _facts(name, architecture, config_class.from_pretrained(folder), num_parameters, None)


def training_record(folder: str | Path) -> dict[str, Any] | None:
    """Model, recipe and training in the result file of a model's folder; `None` without a file."""
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        return None
    results = read_results(path)
    return {name: results.get(name) for name in ("model", "recipe", "training")}


def training_facts(args: TrainingArguments, num_steps: int, clips_per_step: int) -> dict[str, Any]:
    """Facts about a training of `num_steps` optimiser steps for a result file."""
    return {
        "steps": num_steps,
        "clips_per_step": clips_per_step,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "seed": args.seed,
    }


def _facts(
    name: str, architecture: str, config: PreTrainedConfig, num_parameters: int, initial_weights: str | None
) -> dict[str, Any]:
    is_local = initial_weights is not None and Path(initial_weights).exists()
    return {
        "name": name,
        "architecture": architecture,
        "model_type": config.model_type,
        "num_parameters": num_parameters,
        "num_frames": getattr(config, "num_frames", 1),
        # Of a local folder only the name means something to others.
        "initial_weights": Path(initial_weights).resolve().name if is_local and initial_weights else initial_weights,
        "base_model": None if is_local or not _is_repository(initial_weights) else initial_weights,
    }


def _is_repository(name: str | None) -> bool:
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return True


def _num_saved_values(file: Path) -> int:
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if not name.endswith(STATISTICS)]  # noqa: SIM118 (not a mapping)
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)

# SPDX-License-Identifier: Apache-2.0
"""Tools for official checkpoints of any family: reading files, renaming entries, filling models."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_themask.config_overrides import build_config
from transformers_themask.models.mit import MiTConfig

OVERRIDES_REMEDY = "Give fields that leave no trace in the shapes, such as head counts, with `--config-overrides`."

# The official MiT's classifier of images.
MIT_UNUSED = r"^backbone\.head\."

MIT_RENAMES = [
    (r"^patch_embeddings(\d)\.proj", r"segformer.stages.\1.patch_embeddings.proj"),
    (r"^patch_embeddings(\d)\.norm", r"segformer.stages.\1.patch_embeddings.layer_norm"),
    (r"^norm(\d)", r"segformer.stages.\1.layer_norm"),
    (r"^block(\d)\.", r"segformer.stages.\1.blocks."),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"(blocks\.\d+)\.attn\.q\.", r"\1.attention.q_proj."),
    (r"(blocks\.\d+)\.attn\.kv\.", r"\1.attention.kv_proj."),  # split in two by `split_key_values`
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"(blocks\.\d+)\.attn\.sr\.", r"\1.attention.sequence_reduction.sequence_reduction."),
    (r"(blocks\.\d+)\.attn\.norm\.", r"\1.attention.sequence_reduction.layer_norm."),
]

Config = TypeVar("Config", bound=PreTrainedConfig)


@dataclass(frozen=True)
class ConversionReport:
    """Official names that serve no purpose here or have no place in the model, and parameters left unfilled."""

    dropped: list[str]
    unknown: list[str]
    missing: list[str]


def load_official_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the parameters of an official checkpoint file of mmcv or detectron2."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"`path` must be a checkpoint file. Got {path}, which does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"`path` must be a PyTorch checkpoint of plain tensors. Got {path}.") from error
    # mmcv files and detectron2 files; some hold nothing else.
    state_dict = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    is_plain = isinstance(state_dict, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()
    )
    if not is_plain or not state_dict:
        raise ValueError(
            f"`path` must hold an official state dict, of names and tensors. Got {path} with other entries."
        )
    return state_dict


def mit_key(key: str) -> str:
    """The name in a [`MiTBackbone`] of an official `"backbone…"`; fused key-value projections end in `kv_proj`."""
    # Stages count from 1 in the official names.
    name = re.sub(
        r"^(patch_embed|norm|block)(\d)",
        lambda match: f"{match[1].replace('embed', 'embeddings')}{int(match[2]) - 1}",
        key.removeprefix("backbone."),
    )
    for pattern, replacement in MIT_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def split_key_values(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """The entries of a renamed parameter of the MiT: two for a fused key-value projection, else one."""
    if ".kv_proj." not in key:
        return {key: tensor}
    return {key.replace("kv_proj", f"{name}_proj"): x for name, x in zip("kv", tensor.chunk(2), strict=True)}


def renamed(key: str, dropped: Sequence[str], mit: str, renames: Sequence[tuple[str, str]]) -> str | None:
    """Rename one official parameter; `None` for one that is dropped. `mit` is the name of the MiT in the model."""
    if any(re.search(pattern, key) for pattern in (*dropped, MIT_UNUSED)):
        return None
    if key.startswith("backbone."):
        return f"{mit}.{mit_key(key)}"
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def converted_entries(
    state_dict: dict[str, Tensor],
    rename: Callable[[str], str | None],
    reshape: Callable[[str, Tensor], dict[str, Tensor]],
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reshape official parameters; returns the new entries, and the official names dropped.

    `rename` gives `None` for a parameter to drop; `reshape` gives one entry or several for a renamed parameter.
    """
    converted: dict[str, Tensor] = {}
    dropped = []
    for official_key, tensor in state_dict.items():
        key = rename(official_key)
        if key is None:
            dropped.append(official_key)
        else:
            converted |= reshape(key, tensor)
    return converted, dropped


def mit_config_from(state_dict: dict[str, Tensor]) -> MiTConfig:
    """Read the MiT off the shapes of a state dict, with the official head counts (1, 2, 5, 8)."""
    return MiTConfig(
        hidden_sizes=[shape_in(state_dict, f"backbone.norm{stage}.weight")[0] for stage in range(1, 5)],
        depths=[count_in(state_dict, rf"backbone\.block{stage}\.(\d+)\.") for stage in range(1, 5)],
    )


def count_in(state_dict: dict[str, Tensor], pattern: str) -> int:
    """Length of a numbered list of entries: one more than the largest number that a pattern finds."""
    return 1 + max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=-1)


def shape_in(state_dict: dict[str, Tensor], key: str) -> torch.Size:
    """The shape of an entry; a `ValueError` if it is missing."""
    if key not in state_dict:
        raise ValueError(f"An official state dict must hold `{key}`. Got {len(state_dict)} entries without it.")
    return state_dict[key].shape


def build_official_config(config_class: type[Config], fields: dict[str, Any], overrides: dict[str, Any]) -> Config:
    """Build a configuration from fields read off a checkpoint and overrides; a `ValueError` names the option."""
    try:
        return build_config(config_class, fields, overrides)
    except ValueError as error:
        raise ValueError(f"{error} {OVERRIDES_REMEDY}") from error


def fill_model(model: PreTrainedModel, converted: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load renamed parameters into a model; returns entries that it lacks, and its parameters left unfilled."""
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for key in converted.keys() & shapes.keys():
        if converted[key].shape != shapes[key]:
            raise ValueError(
                f"`config` must be that of the checkpoint. Got shape {tuple(shapes[key])} for `{key}`, which has "
                f"{tuple(converted[key].shape)} in the checkpoint. {OVERRIDES_REMEDY}"
            )
    known = {key: tensor for key, tensor in converted.items() if key in shapes}
    missing, _ = model.load_state_dict(known, strict=False)
    return sorted(converted.keys() - shapes.keys()), sorted(missing)


def official_names(
    keys: Sequence[str],
    state_dict: dict[str, Tensor],
    convert: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], list[str]]],
) -> list[str]:
    """The official names, sorted, of the parameters that `convert`, a family's conversion, turned into `keys`."""
    wanted = set(keys)
    return sorted(key for key, tensor in state_dict.items() if wanted & convert({key: tensor})[0].keys())

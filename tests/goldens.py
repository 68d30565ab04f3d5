# SPDX-License-Identifier: Apache-2.0
"""Access to the tensors recorded from the official codes, and the replay of its random draws."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures" / "themask"


@lru_cache
def tensors(name: str, folder: Path = FIXTURES) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


@lru_cache
def json_file(name: str, folder: Path = FIXTURES):
    return json.loads((folder / f"{name}.json").read_text())


def manifest(folder: Path = FIXTURES) -> dict:
    return json_file("manifest", folder)


def under(entries: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names start with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in entries.items() if key.startswith(prefix)}


def weights(name: str, folder: Path = FIXTURES) -> dict[str, Tensor]:
    return under(tensors(name, folder), "weights.")


def official_layer(layer: int, num_layers: int) -> str:
    """The official name of our prediction layer: they number all but the last."""
    return "final" if layer == num_layers else f"aux{layer}"


def official_layers(num_layers: int) -> list[int]:
    """Our layer numbers in the order in which the official code visits them: the last one first."""
    return [num_layers, *range(num_layers)]


class RecordedPoints:
    """A point sampler that replays recorded draws and fails on any other."""

    def __init__(self, draws: dict[tuple[str, int], Tensor]):
        self.draws = draws

    def __call__(self, kind: str, layers: range, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        drawn = torch.stack([self.draws.pop((kind, layer)) for layer in layers])
        assert tuple(drawn.shape) == tuple(shape), f"{kind}, {layers}: recorded {drawn.shape}, asked {shape}"
        return drawn


def draws_in_order(entries: dict[str, Tensor], prefix: str) -> Iterator[Tensor]:
    recorded = under(entries, prefix)
    return iter(recorded[key] for key in sorted(recorded))


def one_frame_points(entries: dict[str, Tensor], prefix: str, batch_size: int, num_layers: int) -> RecordedPoints:
    """Per layer: one matching draw per clip, then candidates and uniform points of the primary loss."""
    draws, recorded = {}, draws_in_order(entries, prefix)
    for layer in official_layers(num_layers):
        draws["matching", layer] = torch.cat([next(recorded) for _ in range(batch_size)])
        draws["video_primary_candidates", layer] = next(recorded)
        draws["video_primary_uniform", layer] = next(recorded)
    return RecordedPoints(draws)


def video_points(entries: dict[str, Tensor], prefix: str, batch_size: int, num_layers: int) -> RecordedPoints:
    """All matching draws first, then the video-level and the frame-level losses."""
    draws, recorded = {}, draws_in_order(entries, prefix)
    for layer in official_layers(num_layers):
        draws["matching", layer] = torch.cat([next(recorded) for _ in range(batch_size)])
    for level in ("video", "frame"):
        for layer in official_layers(num_layers):
            draws[f"{level}_primary_candidates", layer] = next(recorded)
            draws[f"{level}_primary_uniform", layer] = next(recorded)
    return RecordedPoints(draws)


OFFICIAL_TERMS = {
    "loss_class": "loss_ce",
    "loss_mask": "r0_loss_mask",
    "loss_dice": "r0_loss_dice",
    "loss_secondary_mask": "r1_loss_mask_unmatched",
    "loss_secondary_dice": "r1_loss_dice_unmatched",
}


def official_loss_terms(entries: dict[str, Tensor], prefix: str, num_layers: int) -> dict[str, Tensor]:
    """Recorded losses under our names: one vector over layers per term."""
    recorded = under(entries, prefix)
    terms = {}
    for level, suffix in (("", ""), ("frame_", "_aux")):
        for name, official in OFFICIAL_TERMS.items():
            candidates = (official, official.removeprefix("r0_"))  # one-round losses carry no round
            for candidate in candidates:
                keys = [f"{candidate}_{layer}{suffix}" for layer in range(num_layers)] + [f"{candidate}{suffix}"]
                if all(key in recorded for key in keys):
                    terms[f"{level}{name}"] = torch.stack([recorded[key] for key in keys])
    return terms

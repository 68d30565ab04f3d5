# SPDX-License-Identifier: Apache-2.0
"""Compare how many queries receive a target with one and with two rounds of matching (THE-Mask, Fig. 1)."""

import argparse
from collections.abc import Iterator, Mapping
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback

from transformers_themask.models.label_counts import clip_targets
from transformers_themask.models.matching import LevelPrediction
from transformers_themask.models.modeling_themask import loss_settings
from transformers_themask.models.point_sampling import uniform_points
from transformers_themask.models.query_loss import HierarchicalLoss
from transformers_themask.training.preparation import prepare
from transformers_themask.training.recipes import parse_recipe

SHARES = ("primary_query_share", "secondary_query_share")


def measure(arguments: list[str], matching_rounds: int) -> dict[str, list[Any]]:
    """Train for the steps that `arguments` give; shares of queries with a target, from one clip and from any.

    `steps`: the shares of the two rounds. `batches`: the share of the last layer's queries with a target from any
    clip, whose matching is repeated at other random points than the loss.
    """
    batches: list[float] = []
    generator = torch.Generator().manual_seed(0)  # independent of the training

    def collect(model: nn.Module, args: tuple, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        config: Any = model.config
        targets = clip_targets(inputs["labels"], config.num_labels, config.ignore_value, exclude_ignored=False)
        logits = (outputs["class_queries_logits"].detach(), outputs["masks_queries_logits"].detach())
        criterion = HierarchicalLoss(loss_settings(config), uniform_points, generator)
        (layer,) = criterion.match([LevelPrediction(*logits)], [], targets, matching_rounds)
        used = {int(query) for pair in layer for group in pair for query in group.query_indices}
        batches.append(len(used) / config.num_queries)

    with TemporaryDirectory() as folder:
        quiet = ["--output_dir", folder, "--eval_strategy", "no", "--save_strategy", "no", "--disable_tqdm", "true"]
        model_args, data_args, training_args = parse_recipe([*arguments, *quiet, "--logging_steps", "1"])
        training_args.one_round_steps = training_args.max_steps if matching_rounds == 1 else 0
        trainer, _ = prepare(model_args, data_args, training_args, print)
        if trainer.model.config.num_frames > 1:
            raise ValueError(
                f"`num_frames` must be 1 to count used queries. Got {trainer.model.config.num_frames}. "
                "Give a stage-1 recipe."
            )
        trainer.model.register_forward_hook(collect, with_kwargs=True)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [[entry[share] for share in SHARES] for entry in trainer.state.log_history if "loss" in entry]
    return {"steps": steps, "batches": batches}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="RECIPE [--flag value ...]", help="a stage-1 run"
    )


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train with one and with two rounds; the shares of both."""
    runs = {rounds: measure(options.arguments, rounds) for rounds in (1, 2)}
    print(f"{len(runs[1]['steps'])} steps")
    for rounds, usage in runs.items():
        totals = [sum(shares) for shares in usage["steps"]]
        print(
            f"rounds of matching: {rounds}  queries with a target per clip: {mean(totals):.4f} "
            f"({min(totals):.4f} to {max(totals):.4f})  per batch: {mean(usage['batches']):.4f}"
        )
    ratios = [sum(two) / sum(one) for one, two in zip(runs[1]["steps"], runs[2]["steps"], strict=True)]
    print(f"two rounds to one, step by step: {min(ratios):.4f} to {max(ratios):.4f}")
    yield {str(rounds): usage for rounds, usage in runs.items()}

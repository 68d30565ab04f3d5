# SPDX-License-Identifier: Apache-2.0
"""Compare how many queries receive a target with one and with two rounds of matching (THE-Mask, Fig. 1).

    python -m benchmarks query-shares recipes/camvid_small_stage1.yaml --data_root CAMVID --max_steps 48 [--flag value]

Trains the recipe's model for a few steps from the same weights on the same clips, once with each number of rounds, and
keeps nothing. Prints the share of queries that received a target per clip, averaged over the clips of each step, and
the share that received one from any clip of a batch.
"""

import argparse
from collections.abc import Iterator, Mapping
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

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


class Usage(NamedTuple):
    """Shares of queries with a target: per step in the two rounds, and per batch from any clip."""

    steps: list[tuple[float, float]]
    batches: list[float]


class UsedQueries:
    """Forward hook that collects, per batch, the queries of the last layer that receive a target from any clip.

    It repeats the matching at other random points than the loss.
    """

    def __init__(self, matching_rounds: int):
        self.matching_rounds = matching_rounds
        self.batches: list[set[int]] = []
        self.generator = torch.Generator().manual_seed(0)  # independent of the training

    def __call__(self, model: nn.Module, args: tuple, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Add the queries of one batch of clips."""
        config: Any = model.config
        targets = clip_targets(inputs["labels"], config.num_labels, config.ignore_value, exclude_ignored=False)
        prediction = LevelPrediction(
            outputs["class_queries_logits"].detach(), outputs["masks_queries_logits"].detach()
        )
        criterion = HierarchicalLoss(loss_settings(config), uniform_points, self.generator)
        (layer,) = criterion.match([prediction], [], targets, self.matching_rounds)
        self.batches.append({int(query) for pair in layer for group in pair for query in group.query_indices})


def measure(arguments: list[str], matching_rounds: int) -> Usage:
    """Train for the steps that `arguments` give, and collect the queries with targets."""
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
        used = UsedQueries(matching_rounds)
        trainer.model.register_forward_hook(used, with_kwargs=True)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = [(entry[SHARES[0]], entry[SHARES[1]]) for entry in entries]
    return Usage(steps, [len(queries) / trainer.model.config.num_queries for queries in used.batches])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="RECIPE [--flag value ...]", help="a stage-1 run"
    )


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train with one and with two rounds; the shares of both."""
    runs = {rounds: measure(options.arguments, rounds) for rounds in (1, 2)}
    print(f"{len(runs[1].steps)} steps")
    for rounds, usage in runs.items():
        totals = [sum(shares) for shares in usage.steps]
        print(
            f"rounds of matching: {rounds}  queries with a target per clip: {mean(totals):.4f} "
            f"({min(totals):.4f} to {max(totals):.4f})  per batch: {mean(usage.batches):.4f}"
        )
    ratios = [sum(two) / sum(one) for one, two in zip(runs[1].steps, runs[2].steps, strict=True)]
    print(f"two rounds to one, step by step: {min(ratios):.4f} to {max(ratios):.4f}")
    yield {str(rounds): usage._asdict() for rounds, usage in runs.items()}

# SPDX-License-Identifier: Apache-2.0
"""`themask card`: write a model card."""

import argparse
from pathlib import Path
from typing import Any

from .command import add_command, naming


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    command = add_command(commands, "card", run)
    command.add_argument("results", type=Path, metavar="RESULTS", help="results.json of an evaluation")
    command.add_argument(
        "--model", type=Path, metavar="DIR", help="folder of the model, where the results do not name it"
    )
    command.add_argument(
        "--license", metavar="ID", help="licence of the weights, e.g. cc-by-nc-4.0 (default: unknown)"
    )
    command.add_argument("--repo-id", metavar="ID", help="repository that the usage example loads")
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="(default: README.md next to the model or the results)"
    )


def run(options: argparse.Namespace) -> None:
    """Write the model card of a model from the results of its evaluation."""
    from transformers_themask.publishing.model_card import build_model_card
    from transformers_themask.publishing.results import read_results, saved_model_facts
    from transformers_themask.sinks.output_folder import check_output_folder

    results = read_results(options.results)
    if options.model is not None:
        results["model"] = saved_model_facts(options.model)
    output = options.output or (options.model or options.results.parent) / "README.md"
    check_output_folder("--output", output.parent)
    with naming(options.results):
        text = str(build_model_card(results, license_id=options.license, repo_id=options.repo_id))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"model card: {output}")

# SPDX-License-Identifier: Apache-2.0
"""`themask card`: write a model card."""

import argparse

from transformers_themask.publishing.model_card import build_model_card
from transformers_themask.publishing.results import read_results, saved_model_facts
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.terminal_text import naming


def run(options: argparse.Namespace) -> None:
    """Write a model card from the results of an evaluation."""
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

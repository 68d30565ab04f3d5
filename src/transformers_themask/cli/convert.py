# SPDX-License-Identifier: Apache-2.0
"""`themask convert`: turn an official checkpoint into a model folder."""

import argparse

from transformers_themask.config_overrides import mapping_from_text
from transformers_themask.conversion.checkpoints import convert_file
from transformers_themask.data.vspw import read_class_names
from transformers_themask.sinks.output_folder import check_output_folder


def run(options: argparse.Namespace) -> int:
    """Convert a checkpoint; returns 1 if some of its entries have no place in the model, else 0."""
    check_output_folder("OUTPUT", options.output)
    overrides = mapping_from_text("--config-overrides", options.config_overrides)
    class_names = None if options.data is None else read_class_names(options.data)
    parts = {} if options.motion_encoder is None else {"motion_encoder": options.motion_encoder}
    model, processor, report = convert_file(options.checkpoint, class_names, parts, overrides)
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    for name, keys in (("dropped", report.dropped), ("unknown", report.unknown)):
        if keys:
            print(f"{name}: {', '.join(keys)}")
    print(f"model: {options.output}")
    return 1 if report.unknown else 0

# SPDX-License-Identifier: Apache-2.0
"""`themask convert`: turn an official checkpoint into a model folder."""

import argparse

from transformers_themask.config_overrides import mapping_from_text
from transformers_themask.conversion.checkpoints import convert_complete_checkpoint, load_part
from transformers_themask.conversion.official import load_official_checkpoint
from transformers_themask.data.vspw import read_class_names
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.sinks.output_folder import check_output_folder

from .command import naming


def run(options: argparse.Namespace) -> int:
    """Turn a checkpoint of the official code into a model folder; 1 if some of its entries have no place there."""
    check_output_folder("OUTPUT", options.output)
    overrides = mapping_from_text("--config-overrides", options.config_overrides)
    class_names = None if options.data is None else read_class_names(options.data)
    part_files = {"motion_encoder": options.motion_encoder}
    parts = {name: load_official_checkpoint(file) for name, file in part_files.items() if file is not None}
    state_dict = load_official_checkpoint(options.checkpoint)
    with naming(options.checkpoint):
        model, report = convert_complete_checkpoint(state_dict, overrides, class_names, list(parts))
    for name, entries in parts.items():
        with naming(part_files[name]):
            load_part(model, name, entries)
    model.save_pretrained(options.output)
    VideoSegmentationProcessor(fit=getattr(model.config, "fit", "stretch")).save_pretrained(options.output)
    for name, keys in (("dropped", report.dropped), ("unknown", report.unknown)):
        if keys:
            print(f"{name}: {', '.join(keys)}")
    print(f"model: {options.output}")
    return 1 if report.unknown else 0

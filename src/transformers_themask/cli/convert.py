# SPDX-License-Identifier: Apache-2.0
"""`themask convert`: turn an official checkpoint into a model folder."""

import argparse

from transformers_themask.config_overrides import mapping_from_text
from transformers_themask.conversion.checkpoints import config_from_state_dict, convert_official_checkpoint
from transformers_themask.conversion.official import load_official_checkpoint
from transformers_themask.data.vspw import read_class_names
from transformers_themask.families.mpvss import load_motion_encoder
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.sinks.output_folder import check_output_folder

from .command import naming


def run(options: argparse.Namespace) -> int:
    """Turn a checkpoint of the official code into a model folder; 1 if some of its entries have no place there."""
    check_output_folder("OUTPUT", options.output)
    overrides = mapping_from_text("--config-overrides", options.config_overrides)
    state_dict = load_official_checkpoint(options.checkpoint)
    with naming(options.checkpoint):
        config = config_from_state_dict(state_dict, **overrides)
    if options.data is not None:
        class_names = read_class_names(options.data)
        if len(class_names) != config.num_labels:
            raise ValueError(
                f"`--data` must have the checkpoint's {config.num_labels} classes. Got {len(class_names)} in "
                f"{options.data}."
            )
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
    with naming(options.checkpoint):
        model, report = convert_official_checkpoint(state_dict, config)
    missing = report.missing
    if options.motion_encoder is not None:
        missing = [name for name in missing if not name.startswith("flow.")]
    if missing:
        raise ValueError(
            f"`CHECKPOINT` must fill every parameter of the model. Got {options.checkpoint} without "
            f"{len(missing)} of them, the first {missing[0]}."
        )
    if options.motion_encoder is not None:
        motion_encoder = load_official_checkpoint(options.motion_encoder)
        with naming(options.motion_encoder):
            load_motion_encoder(model, motion_encoder)
    model.save_pretrained(options.output)
    VideoSegmentationProcessor(fit=getattr(config, "fit", "stretch")).save_pretrained(options.output)
    for name, keys in (("dropped", report.dropped), ("unknown", report.unknown)):
        if keys:
            print(f"{name}: {', '.join(keys)}")
    print(f"model: {options.output}")
    return 1 if report.unknown else 0

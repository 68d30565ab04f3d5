# SPDX-License-Identifier: Apache-2.0
"""`themask evaluate`: score a folder of label maps."""

import argparse
from typing import Any

import torch

from transformers_themask.data.sources import load_videos
from transformers_themask.metrics.prediction_folder import score_prediction_folder
from transformers_themask.metrics.video_scores import named_scores
from transformers_themask.models.video_processing import VideoSegmentationProcessor
from transformers_themask.publishing.results import write_results
from transformers_themask.sinks.output_folder import check_output_folder
from transformers_themask.terminal_text import counted


def run(options: argparse.Namespace) -> None:
    """Score a folder of label maps against a data set."""
    if options.json is not None:
        check_output_folder("--json", options.json.parent)
    videos = load_videos(options.data, options.split)
    class_indices = VideoSegmentationProcessor().reduce_labels(torch.arange(256))
    scores = score_prediction_folder(options.predictions, videos, class_indices, options.prediction_ids)
    scores = named_scores(scores, videos.class_names)
    _print_scores(scores)
    if options.json is not None:
        write_results(options.json, scores, data_set=options.data.resolve().name, split=options.split)


def _print_scores(scores: dict[str, Any]) -> None:
    columns = {
        "mIoU": "mean_iou",
        "wIoU": "weighted_iou",
        "aAcc": "pixel_accuracy",
        "mAcc": "mean_accuracy",
        "VC8": "vc8",
        "VC16": "vc16",
    }
    print(f"{counted(scores['num_videos'], 'video')}, {counted(scores['num_frames'], 'frame')}")
    print("".join(f"{title:>8}" for title in columns))
    print("".join(f"{_score_text(scores[name]):>8}" for name in columns.values()))
    name_width = max(map(len, scores["per_class_iou"]))
    print(f"\n{'class':<{name_width}}{'IoU':>8}")
    for name, iou in scores["per_class_iou"].items():
        print(f"{name:<{name_width}}{_score_text(iou):>8}")


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"

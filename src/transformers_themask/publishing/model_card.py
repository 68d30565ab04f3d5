# SPDX-License-Identifier: Apache-2.0
"""Model cards generated from result files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from transformers_themask.registry import family_of

from .licenses import check_license
from .results import RESULT_FILE, read_results

logger = logging.get_logger(__name__)

# The Hub has no tag for video segmentation; `video-semantic-segmentation` is a tag of its own.
PIPELINE_TAG = "image-segmentation"
METRICS = {"mean_iou": "mIoU", "weighted_iou": "Weighted IoU", "vc8": "VC8", "vc16": "VC16"}
TEMPLATE = "video_semantic_segmentation.md"


def write_model_card(
    output_dir: str | Path, *, license_id: str | None = None, repo_id: str | None = None, tags: Sequence[str] = ()
) -> Path | None:
    """Write the model card of a model's folder from its result file; `None`, with a warning, without results."""
    results_file = Path(output_dir) / RESULT_FILE
    if not results_file.is_file():
        logger.warning(f"No model card is written to {output_dir}, which has no {RESULT_FILE} yet.")
        return None
    card = build_model_card(read_results(results_file), license_id=license_id, repo_id=repo_id, tags=tags)
    path = Path(output_dir) / "README.md"
    path.write_text(str(card), encoding="utf-8")
    return path


def build_model_card(
    results: Mapping[str, Any],
    *,
    license_id: str | None = None,
    repo_id: str | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """Build a model card from results that name their model; `repo_id` is what the usage example loads."""
    license_id = "unknown" if license_id is None else license_id
    check_license("license", license_id)
    model = results.get("model")
    if model is None:
        raise ValueError("The results must name their model; give the folder of the model.")
    if results["mean_iou"] is None:
        raise ValueError("The results must hold a mean IoU; score a split with labels.")
    data = ModelCardData(
        license=license_id,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(dict.fromkeys(["video-semantic-segmentation", model["model_type"], *tags])),
        datasets=[_identifier(results["data_set"])],
        base_model=model["base_model"],
        metrics=["mean_iou"],
        model_name=model["name"],
        eval_results=_eval_results(results),
    )
    return ModelCard.from_template(
        data,
        template_path=str(template_path()),
        model_id=repo_id or model["name"],
        results=results,
        introduction=row.introduction if (row := family_of(model["model_type"])) else "",
        scores={title: results[name] for name, title in METRICS.items()},
        hardest_videos=_hardest_videos(results),
    )


def template_path() -> Path:
    """Path of the card's template: in the installed package, or `model_cards/` at the root of a checkout."""
    package = Path(__file__).parents[1]
    installed, checkout = package / "model_cards", package.parents[1] / "model_cards"
    return (installed if installed.is_dir() else checkout) / TEMPLATE


def _eval_results(results: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name="Video semantic segmentation",
            dataset_type=_identifier(results["data_set"]),
            dataset_name=results["data_set"],
            dataset_split=results["split"],
            metric_type=name,
            metric_name=title,
            metric_value=results[name],
        )
        for name, title in METRICS.items()
        if results[name] is not None
    ]


def _identifier(name: str) -> str:
    """`name` as an identifier of the Hub, in its set of characters."""
    return re.sub(r"[^a-z0-9._/]+", "-", name.lower()).strip("-") or "custom"


def _hardest_videos(results: Mapping[str, Any], number: int = 5) -> list[tuple[str, float]]:
    scores = [(video, entry["mean_iou"]) for video, entry in results.get("per_video", {}).items()]
    return sorted((item for item in scores if item[1] is not None), key=lambda item: item[1])[:number]

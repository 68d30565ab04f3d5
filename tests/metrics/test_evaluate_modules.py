# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` modules: offline, and where this package cannot be imported."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest

import transformers_themask.metrics
from transformers_themask.metrics import video_consistency, video_mean_iou

METRICS = Path(transformers_themask.metrics.__file__).parent

LOAD_AND_SCORE = """
import json
import sys

sys.modules["transformers_themask"] = None  # any import of the package fails
import evaluate
import numpy as np

metrics_dir, data = sys.argv[1:]
arrays = np.load(data)
videos = [(arrays[f"prediction_{i}"], arrays[f"label_{i}"]) for i in range(2)]
mean_iou = evaluate.load(f"{metrics_dir}/video_mean_iou.py", num_labels=4)
consistency = evaluate.load(f"{metrics_dir}/video_consistency.py", window_lengths=(2, 3), windows="all")
results = []
for prediction, label in videos:
    for metric in (mean_iou, consistency):
        metric.add(prediction=prediction, reference=label)
results.append({**mean_iou.compute(), **consistency.compute()})
combined = evaluate.combine([mean_iou, consistency])
for prediction, label in videos:
    combined.add(prediction=prediction, reference=label)
results.append(combined.compute())
predictions, labels = zip(*videos)
combined.add_batch(predictions=predictions, references=labels)
results.append(combined.compute())
batch = {"predictions": predictions, "references": labels}
results.append({**mean_iou.compute(**batch), **consistency.compute(**batch)})
print(json.dumps({"results": results, "names": [mean_iou.name, consistency.name]}))
"""


@pytest.fixture
def videos():
    rng = np.random.default_rng(5)
    videos = []
    for num_frames in (7, 4):
        prediction, label = np.repeat(rng.integers(0, 4, (2, 1, 5, 6), dtype=np.uint8), num_frames, axis=1)
        label, prediction = label.copy(), np.where(rng.random(label.shape) < 0.2, 1, prediction).astype(np.uint8)
        label[:, 0] = 255
        videos.append((prediction, label))
    return videos


def test_modules_of_a_copied_folder_score_offline_in_every_calling_style(videos, tmp_path):
    arrays = {}
    for index, (prediction, label) in enumerate(videos):
        arrays |= {f"prediction_{index}": prediction, f"label_{index}": label}
    np.savez(tmp_path / "videos.npz", **arrays)
    copy = shutil.copytree(METRICS, tmp_path / "metrics")
    offline = {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.run(
        [sys.executable, "-c", LOAD_AND_SCORE, copy, tmp_path / "videos.npz"],
        env={**os.environ, **offline},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    output = json.loads(process.stdout)

    matrix = sum(video_mean_iou.confusion_matrix(*video, 4) for video in videos)
    expected = video_mean_iou.mean_iou_scores(matrix)
    for n in (2, 3):
        ratios = [video_consistency.video_consistency_windows(*video, n, windows="all") for video in videos]
        expected[f"vc{n}"] = pytest.approx(np.concatenate(ratios).mean(), rel=1e-12)
    assert output["results"] == [expected] * 4
    assert output["names"] == ["video_mean_iou", "video_consistency_metric"]
    assert not list((tmp_path / "home").rglob("*.arrow"))


def test_options_reach_the_scores(tmp_path):
    prediction, label = np.array([[0, 1, 2]]), np.array([[0, 1, 1]])  # class 2 is in no label
    excluded = video_mean_iou.VideoMeanIou(3, cache_dir=str(tmp_path))
    counted = video_mean_iou.VideoMeanIou(3, absent_classes="count", cache_dir=str(tmp_path))
    ignoring = video_mean_iou.VideoMeanIou(3, ignore_index=1, cache_dir=str(tmp_path))
    means = []
    for metric in (excluded, counted, ignoring):
        metric.add(prediction=prediction, reference=label)
        means.append(metric.compute()["mean_iou"])
    assert means == [0.75, 0.5, 1.0]


def test_empty_metric_scores_nan(tmp_path):
    assert math.isnan(video_mean_iou.VideoMeanIou(3, cache_dir=str(tmp_path)).compute()["mean_iou"])
    assert math.isnan(video_consistency.VideoConsistencyMetric(cache_dir=str(tmp_path)).compute()["vc8"])


@pytest.mark.parametrize(
    "make", [lambda **k: video_mean_iou.VideoMeanIou(3, **k), video_consistency.VideoConsistencyMetric]
)
def test_missing_arguments_and_several_processes_are_rejected(make, tmp_path):
    with pytest.raises(ValueError, match=r"`num_process` must be 1. Got 2"):
        make(num_process=2, cache_dir=str(tmp_path))
    metric = make(cache_dir=str(tmp_path))
    assert isinstance(metric, evaluate.Metric)
    with pytest.raises(ValueError, match="`prediction` and `reference` must both be given"):
        metric.add(prediction=np.zeros((2, 2, 2), dtype=int))
    with pytest.raises(ValueError, match="`predictions` and `references` must be given together"):
        metric.compute(predictions=[np.zeros((2, 2, 2), dtype=int)])

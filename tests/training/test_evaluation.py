# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny_model
from transformers_themask.data.clips import evaluation_clips
from transformers_themask.training.evaluation import evaluate_videos
from transformers_themask.training.trainer import VSSTrainer

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_vss.py"


def offline_label_maps(model, processor, videos):
    """Every video's label maps and raw masks, all kept in memory: `{video_id: (label_maps, masks)}`."""
    collected = {}
    for row in videos.rows:
        frames = np.stack([np.array(Image.open(videos.root / path)) for path in row["frames"]])
        masks = np.stack([np.array(Image.open(videos.root / path)) for path in row["masks"]])
        label_maps = np.empty_like(masks)
        for clip in evaluation_clips(len(frames), videos.num_frames, videos.frame_stride):
            with torch.no_grad():
                outputs = model(**processor(frames[clip], return_tensors="pt"))
            sizes = [masks.shape[1:]]
            label_maps[clip] = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy()
        collected[row["video_id"]] = (label_maps, masks)
    return collected


def naive_mean_iou(collected, num_classes):
    predictions = np.concatenate([label_maps.ravel() for label_maps, _ in collected.values()]) + 1
    masks = np.concatenate([masks.ravel() for _, masks in collected.values()])
    predictions, masks = predictions[masks > 0], masks[masks > 0]
    ious = [
        ((predictions == raw_id) & (masks == raw_id)).sum() / ((predictions == raw_id) | (masks == raw_id)).sum()
        for raw_id in range(1, num_classes + 1)
        if (masks == raw_id).any()
    ]
    return np.mean(ious)


def naive_consistency(collected, window):
    ratios = []
    for label_maps, masks in collected.values():
        for start in range(len(masks) - window):
            part = slice(start, start + window)
            is_stable = (masks[part] == masks[start]).all(0)
            ratios.append((is_stable & (label_maps[part] == label_maps[start]).all(0)).sum() / is_stable.sum())
    return np.mean(ratios)


@pytest.mark.parametrize(("num_frames", "frame_stride"), [(1, 3), (2, 3), (2, 1)])
def test_scores_equal_those_of_all_label_maps_together(processor, videos, tmp_path, num_frames, frame_stride):
    model = tiny_model(num_frames=num_frames, num_labels=8)
    selected = videos(num_frames, frame_stride)
    scores = evaluate_videos(model, processor, selected, prediction_dir=tmp_path)
    collected = offline_label_maps(model, processor, selected)
    assert scores["mean_iou"] == pytest.approx(naive_mean_iou(collected, 8), abs=1e-12)
    for window in (8, 16):
        assert scores[f"vc{window}"] == pytest.approx(naive_consistency(collected, window), abs=1e-12)
    assert scores["num_frames"] == sum(len(masks) for _, masks in collected.values())
    for row in selected.rows:
        files = [tmp_path / row["video_id"] / f"{Path(path).stem}.png" for path in row["masks"]]
        written = np.stack([np.array(Image.open(file)) for file in files])
        assert np.array_equal(written, collected[row["video_id"]][0])


def test_a_class_without_labels_has_no_score(processor, videos):
    model = tiny_model(num_labels=9)
    selected = videos()
    with_unseen = type(selected)(selected.rows, selected.root, [*selected.class_names, "unseen"], 1)
    per_class = evaluate_videos(model, processor, with_unseen)["per_class_iou"]
    assert per_class["unseen"] is None and len(per_class) == 9


def test_a_mask_of_another_size_than_its_frame_is_named(processor, videos, tmp_path):
    selected = videos()
    row = dict(selected.rows[0])
    mask = tmp_path / "mask.png"
    Image.fromarray(np.ones((8, 8), np.uint8)).save(mask)
    row["masks"] = [str(mask)]
    wrong = type(selected)([row], selected.root, selected.class_names, 1)
    with pytest.raises(ValueError, match=r"mask\.png must have its frame's size .* \(64, 80\)\. Got \(8, 8\)"):
        evaluate_videos(tiny_model(num_labels=8), processor, wrong)


def test_a_label_out_of_range_names_the_file_and_the_raw_id(processor, videos, tmp_path):
    selected = videos()
    row = dict(selected.rows[0])
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((64, 80), 9, np.uint8)).save(mask)
    row["masks"] = [str(mask)]
    wrong = type(selected)([row], selected.root, selected.class_names, 1)
    with pytest.raises(ValueError, match=rf"Mask {mask} must hold raw ids from 0 to 8 .* Got 9; correct the mask"):
        evaluate_videos(tiny_model(num_labels=8), processor, wrong)


@pytest.mark.parametrize(("num_frames", "frame_stride", "name"), [(0, 3, "num_frames"), (2, 0, "frame_stride")])
def test_clips_without_frames_are_refused(videos, num_frames, frame_stride, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Got 0"):
        videos(num_frames, frame_stride)


def test_the_trainer_returns_and_logs_the_scores(training_arguments, processor, videos):
    model = tiny_model(num_labels=8)
    trainer = VSSTrainer(model, training_arguments(), processor, eval_dataset=videos())
    metrics = trainer.evaluate()
    scores = evaluate_videos(model, processor, videos())
    assert {name: metrics[f"eval_{name}"] for name in scores} == scores
    assert trainer.state.log_history[-1]["eval_mean_iou"] == scores["mean_iou"]


def test_two_processes_score_like_one(data_root, processor, videos, training_arguments, tmp_path):
    model = tiny_model(num_frames=2, num_labels=8)
    model.config.id2label = dict(enumerate(videos().class_names))
    model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [SCRIPT, "--do_eval", "--use_cpu", "--model_name_or_path", tmp_path / "model"]
    command += ["--data_root", data_root, "--output_dir", tmp_path / "run"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    shared = json.loads((tmp_path / "run" / "all_results.json").read_text())
    alone = evaluate_videos(model, processor, videos(num_frames=2))
    assert {name: shared[f"eval_{name}"] for name in alone} == alone

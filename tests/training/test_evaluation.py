# SPDX-License-Identifier: Apache-2.0
import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tiny import tiny_model
from trained_models import TRAINED_MODELS
from transformers_themask.batch.video_batch import divide_work
from transformers_themask.inference.segment import segment_frames
from transformers_themask.metrics.prediction_folder import score_prediction_folder
from transformers_themask.metrics.video_scores import named_scores
from transformers_themask.models.streaming import evaluation_clips
from transformers_themask.mvc.tta import TTA
from transformers_themask.mvc.voting import vote
from transformers_themask.training.evaluation import EvaluationVideos, evaluate_videos
from transformers_themask.training.trainer import VSSTrainer

HERE = Path(__file__).parent


def offline_label_maps(model, processor, videos):
    """Every video's label maps and raw masks, all kept in memory: `{video_id: (label_maps, masks)}`."""
    collected = {}
    root = videos.videos.root
    for row in videos.videos.rows:
        frames = np.stack([np.array(Image.open(root / path)) for path in row["frames"]])
        masks = np.stack([np.array(Image.open(root / path)) for path in row["masks"]])
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
    assert list(scores["per_video"]) == list(collected)
    for video, part in scores["per_video"].items():
        alone = {video: collected[video]}
        assert part["mean_iou"] == pytest.approx(naive_mean_iou(alone, 8), abs=1e-12)
        length = len(alone[video][1])
        assert (part["vc16"] is None) == (length <= 16) and part["num_frames"] == length
        if length > 8:
            assert part["vc8"] == pytest.approx(naive_consistency(alone, 8), abs=1e-12)
    for row in selected.videos.rows:
        files = [tmp_path / row["video_id"] / f"{Path(path).stem}.png" for path in row["masks"]]
        written = np.stack([np.array(Image.open(file)) for file in files])
        assert np.array_equal(written, collected[row["video_id"]][0])


@torch.no_grad()
def test_a_model_without_clips_is_scored_frame_by_frame(processor, videos):
    """Whatever clips are asked for; that it has none decides."""
    model, selected = TRAINED_MODELS["cffm"].build(), videos(num_frames=3)
    collected = {}
    for row in selected.videos.rows:
        state, label_maps = model.initial_state(), []
        for index in range(row["num_frames"]):
            inputs = processor([selected.videos.read_frame(row, index)], return_tensors="pt")
            outputs, state = model.clip_step(inputs["pixel_values_videos"], state)
            label_maps.append(processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 80)])[0][0])
        masks = [selected.videos.read_mask(row, index) for index in range(row["num_frames"])]
        collected[row["video_id"]] = (np.stack(label_maps), np.stack(masks))
    scores = evaluate_videos(model, processor, selected)
    assert scores["mean_iou"] == pytest.approx(naive_mean_iou(collected, 8), abs=1e-12)
    assert scores["vc8"] == pytest.approx(naive_consistency(collected, 8), abs=1e-12)


@pytest.mark.parametrize("name", ["themask_t2", "mpvss"])
def test_passes_are_combined_before_they_are_scored(processor, videos, tmp_path, monkeypatch, name):
    """And the calls of the model, which processes must agree on where it is sharded, are those of all passes."""
    model, selected = TRAINED_MODELS[name].build(), replace(videos(2), tta=TTA((1.0, 2.0), flip=True))
    options = selected.options_for(model)
    processors = [processor, copy.copy(processor)]
    processors[1].size = {edge: 2 * length for edge, length in dict(processor.size).items()}
    collected = {}
    for row in selected.videos.rows:
        frames = np.stack([selected.videos.read_frame(row, index) for index in range(row["num_frames"])])
        masks = [selected.videos.read_mask(row, index) for index in range(row["num_frames"])]
        passes = []
        for scaled in processors:
            backwards = [pair[1] for pair in segment_frames(model, scaled, frames[:, :, ::-1].copy(), **options)]
            passes.append(np.stack(backwards)[..., ::-1])
            passes.append(np.stack([label_map for _, label_map in segment_frames(model, scaled, frames, **options)]))
        collected[row["video_id"]] = (vote(np.stack(passes), range(4)), np.stack(masks))
    calls, run = [], type(model).clip_step
    monkeypatch.setattr(type(model), "clip_step", lambda *arguments: (calls.append(1), run(*arguments))[1])
    scores = evaluate_videos(model, processor, selected, prediction_dir=tmp_path)
    assert len(calls) == sum(selected.num_calls(model, row) for row in selected.videos.rows)
    assert scores["mean_iou"] == pytest.approx(naive_mean_iou(collected, 8), abs=1e-12)
    assert scores["vc8"] == pytest.approx(naive_consistency(collected, 8), abs=1e-12)
    for row in selected.videos.rows:
        files = [tmp_path / row["video_id"] / f"{Path(path).stem}.png" for path in row["masks"]]
        assert np.array_equal([np.array(Image.open(file)) for file in files], collected[row["video_id"]][0])


def test_run_vss_records_its_test_time_augmentation(
    run_vss, data_root, processor, videos, tmp_path, monkeypatch, capsys
):
    selected = replace(videos(2), tta=TTA((1.0, 2.0), flip=True, combine="scores"))
    names = dict(enumerate(selected.videos.class_names))
    model = tiny_model(
        num_frames=2, num_labels=8, id2label=names, label2id={name: index for index, name in names.items()}
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def call(*flags):
        paths = ["--model_name_or_path", tmp_path, "--data_root", data_root, "--output_dir", tmp_path / "scores"]
        quiet = ["--use_cpu", "--disable_tqdm", "true"]
        arguments = ["run_vss.py", "--do_eval", *paths, *quiet, "--eval_flip", "--eval_scales", *flags]
        monkeypatch.setattr("sys.argv", list(map(str, arguments)))
        return run_vss.main()

    assert call("1.0", "2.0", "--eval_combine", "scores") == 0
    results = json.loads((tmp_path / "scores" / "results_val.json").read_text())
    passes = {"scales": [1.0, 2.0], "flip": True, "combine": "scores"}
    assert results["clips"] == {"num_frames": 2, "frame_stride": 3, "tta": passes}
    assert results["mean_iou"] == evaluate_videos(model, processor, selected)["mean_iou"]
    capsys.readouterr()
    assert call("1.0") == call("1.0", "1.001", "2.0") == 2
    errors = capsys.readouterr().err.splitlines()
    assert (
        errors[0].startswith("run_vss.py: `combine` must be 'scores' for two inputs") and "--eval_combine" in errors[0]
    )
    assert errors[-1].startswith("run_vss.py: `scales` must differ in what the network sees. Got 1 and 1.001")


def test_the_written_label_maps_score_alike(processor, videos, tmp_path):
    model, selected = tiny_model(num_frames=2, num_labels=8), videos(2)
    scores = evaluate_videos(model, processor, selected, prediction_dir=tmp_path)
    class_indices = processor.reduce_labels(torch.arange(256))
    from_files = score_prediction_folder(tmp_path, selected.videos, class_indices, progress=False)
    assert scores.pop("num_unlabelled_frames") == 0
    assert named_scores(from_files, selected.videos.class_names) == scores


def test_frames_without_a_mask_are_context(processor, videos, tmp_path):
    model, selected = tiny_model(num_frames=2, num_labels=8), videos(2)
    rows = [
        {**row, "masks": [mask if index % 5 == 1 else "" for index, mask in enumerate(row["masks"])]}
        for row in selected.videos.rows
    ]
    sparse = EvaluationVideos(replace(selected.videos, rows=rows), num_frames=2)
    scores = evaluate_videos(model, processor, sparse, prediction_dir=tmp_path)
    collected = offline_label_maps(model, processor, selected)
    labelled = {video: (maps[1::5], masks[1::5]) for video, (maps, masks) in collected.items()}
    assert scores["mean_iou"] == pytest.approx(naive_mean_iou(labelled, 8), abs=1e-12)
    assert scores["num_frames"] == sum(len(masks) for _, masks in labelled.values())
    assert scores["num_frames"] + scores["num_unlabelled_frames"] == len(list(tmp_path.glob("*/*.png")))
    # No eight frames in a row have labels.
    assert scores["vc8"] is None and all(part["vc8"] is None for part in scores["per_video"].values())
    json.dumps(scores, allow_nan=False)


def test_a_class_without_labels_has_no_score(processor, videos):
    selected = videos().videos
    with_unseen = replace(selected, class_names=[*selected.class_names, "unseen"])
    scores = evaluate_videos(tiny_model(num_labels=9), processor, EvaluationVideos(with_unseen, 1))
    assert scores["per_class_iou"]["unseen"] is None and len(scores["per_class_iou"]) == 9
    assert not any("unseen" in part["per_class_iou"] for part in scores["per_video"].values())


def with_one_mask(videos, mask, path):
    """The first video alone, its mask replaced."""
    Image.fromarray(mask).save(path)
    row = {**videos.videos.rows[0], "masks": [str(path)]}
    return EvaluationVideos(replace(videos.videos, rows=[row]), 1)


def test_mask_of_another_size_than_its_frame_is_rejected(processor, videos, tmp_path):
    wrong = with_one_mask(videos(), np.ones((8, 8), np.uint8), tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"mask\.png must have its frame's size .* \(64, 80\)\. Got \(8, 8\)"):
        evaluate_videos(tiny_model(num_labels=8), processor, wrong)


def test_a_label_out_of_range_names_the_file_and_the_raw_id(processor, videos, tmp_path):
    mask = tmp_path / "mask.png"
    wrong = with_one_mask(videos(), np.full((64, 80), 9, np.uint8), mask)
    with pytest.raises(ValueError, match=rf"Mask {mask} must hold raw ids from 0 to 8 .* Got 9; correct the mask"):
        evaluate_videos(tiny_model(num_labels=8), processor, wrong)


@pytest.mark.parametrize(("num_frames", "frame_stride", "name"), [(0, 3, "num_frames"), (2, 0, "frame_stride")])
def test_clips_without_frames_are_rejected(videos, num_frames, frame_stride, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Got 0"):
        videos(num_frames, frame_stride)


def test_the_trainer_returns_and_logs_the_scores(training_arguments, processor, videos):
    model = tiny_model(num_labels=8)
    trainer = VSSTrainer(model, training_arguments(), processor, eval_dataset=videos())
    metrics = trainer.evaluate()
    scores = evaluate_videos(model, processor, videos())
    assert {name: metrics[f"eval_{name}"] for name in scores} == scores
    assert trainer.state.log_history[-1]["eval_mean_iou"] == scores["mean_iou"]


@pytest.mark.parametrize(
    ("lengths", "num_processes", "shares"),
    [
        ([18, 5, 7], 2, [[0], [1, 2]]),
        ([4, 4, 4, 4], 2, [[0, 2], [1, 3]]),
        ([3, 9], 4, [[1], [0], [], []]),
        ([10, 1, 1, 1, 1, 6], 2, [[0], [1, 2, 3, 4, 5]]),
    ],
)
def test_processes_share_the_frames_evenly(lengths, num_processes, shares):
    assert divide_work(lengths, num_processes) == shares


# Every process calls the model as often as the one with the video of 18 frames: by clips of two frames, or by frames.
# With a mode the model is sharded.
@pytest.mark.parametrize(
    ("name", "mode", "num_calls"),
    [
        ("themask_t2", [], 9),
        ("cffm", ["recurrent"], 18),
        pytest.param("themask_t2", ["interleaved"], 9, marks=pytest.mark.slow),
        pytest.param("themask_t2", ["sliding"], 18, marks=pytest.mark.slow),
        pytest.param("cffm", [], 18, marks=pytest.mark.slow),
        pytest.param("mpvss", ["recurrent"], 18, marks=pytest.mark.slow),
    ],
)
def test_two_processes_score_like_one(name, mode, num_calls, data_root, processor, videos, tmp_path):
    model = TRAINED_MODELS[name].build()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [HERE / "evaluation_worker.py", tmp_path / "model", data_root, tmp_path / "results.json", *mode]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    selected = replace(videos(num_frames=2), mode=mode[0] if mode else None)
    # An odd number of videos, and fewer videos than processes.
    for num_videos, shared in zip((3, 1), json.loads((tmp_path / "results.json").read_text()), strict=True):
        rows = list(selected.videos.rows)[-num_videos:]
        alone = evaluate_videos(model, processor, replace(selected, videos=replace(selected.videos, rows=rows)))
        assert len(alone["per_video"]) == num_videos and alone["vc16"] is not None
        assert shared["scores"] == alone and list(shared["scores"]["per_video"]) == list(alone["per_video"])
        assert shared["calls"] == [num_calls, num_calls]


def test_scoring_takes_little_memory():
    command = [sys.executable, str(HERE / "evaluation_memory.py"), "100"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 50  # MiB

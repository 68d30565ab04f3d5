# SPDX-License-Identifier: Apache-2.0
"""Every family learns: one synthetic clip by heart, through processor, model, all losses and post-processing."""

import pytest
import torch
from transformers import SegformerConfig

from families import cffm_model
from selection import nightly_except
from tiny import tiny_model
from transformers_themask import (
    MiTConfig,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
    THEMaskVideoProcessor,
)
from transformers_themask.data.synthetic import render_synthetic_video

SIZE = (96, 128)
NUM_LABELS = 5
STEPS = 100
WIDTH = 64
# Wider than the models of other tests, or they would not learn in a minute.
BACKBONE = {
    "hidden_sizes": (16, 32, 48, 64),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "drop_path_rate": 0.0,
}


def themask(num_frames, temporal_mode="video_frame"):
    return tiny_model(
        num_frames=num_frames,
        temporal_mode=temporal_mode,
        num_labels=NUM_LABELS,
        num_queries=12,
        train_num_points=512,
        hidden_dim=WIDTH,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        dim_feedforward=2 * WIDTH,
        encoder_feedforward_dim=2 * WIDTH,
        backbone_config=MiTConfig(**BACKBONE),
    )


def cffm():
    return cffm_model(backbone_config=MiTConfig(**BACKBONE), num_labels=NUM_LABELS, hidden_dim=WIDTH, mining_layers=1)


def segformer():
    segmenter = SegformerConfig(**BACKBONE, decoder_hidden_size=WIDTH)
    return PerFrameForVideoSemanticSegmentation(PerFrameConfig(segmenter_config=segmenter, num_labels=NUM_LABELS))


# How to build a model, and the frames of its clip.
LEARNERS = {
    "themask_one_frame": (lambda: themask(1), 1),
    "themask_video_frame": (lambda: themask(4), 4),
    "themask_one_to_frame": (lambda: themask(4, "one_to_frame"), 4),
    "themask_one_to_video": (lambda: themask(4, "one_to_video"), 4),
    "cffm": (cffm, 4),
    "segformer": (segformer, 4),
}


def mean_iou(prediction, labels):
    """Over the classes of the clip; ignored pixels count for nothing."""
    counted = labels != 255
    scores = []
    for label in labels[counted].unique():
        ours, truth = (prediction == label) & counted, labels == label
        scores.append((ours & truth).sum() / (ours | truth).sum())
    return torch.stack(scores).mean()


@pytest.mark.parametrize("learner", nightly_except(LEARNERS, ["themask_video_frame", "cffm"]))
def test_model_overfits_one_clip(learner):
    build, num_frames = LEARNERS[learner]
    frames, raw_labels = render_synthetic_video(3, num_frames, SIZE, NUM_LABELS)
    processor = THEMaskVideoProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    batch = processor(frames, raw_labels, return_tensors="pt")
    assert len(batch["labels"].unique()) == NUM_LABELS + 1  # every class, and pixels without one

    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, power=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        outputs = model.eval()(pixel_values_videos=batch["pixel_values_videos"])
    [prediction] = processor.post_process_semantic_segmentation(outputs, [SIZE])
    # Of every frame: in a clip the last one is answered in another way than the others.
    scores = [mean_iou(*maps) for maps in zip(prediction, batch["labels"][0], strict=True)]
    assert min(scores) > 0.95, scores

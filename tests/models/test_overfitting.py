# SPDX-License-Identifier: Apache-2.0
"""It learns: one synthetic clip by heart, through processor, model, both losses and post-processing."""

import pytest
import torch

from tiny import tiny_model
from transformers_themask import MiTConfig, THEMaskVideoProcessor
from transformers_themask.data.synthetic import render_synthetic_video

SIZE = (96, 128)
NUM_LABELS = 5
STEPS = 70


def small_model(num_frames, temporal_mode):
    width = 64
    return tiny_model(
        num_frames=num_frames,
        temporal_mode=temporal_mode,
        num_labels=NUM_LABELS,
        num_queries=12,
        train_num_points=512,
        hidden_dim=width,
        feature_size=width,
        mask_feature_size=width,
        dim_feedforward=2 * width,
        encoder_feedforward_dim=2 * width,
        backbone_config=MiTConfig(
            hidden_sizes=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4), drop_path_rate=0.0
        ),
    )


def mean_iou(prediction, labels):
    """Over the classes of the clip; ignored pixels count for nothing."""
    counted = labels != 255
    scores = []
    for label in labels[counted].unique():
        ours, truth = (prediction == label) & counted, labels == label
        scores.append((ours & truth).sum() / (ours | truth).sum())
    return torch.stack(scores).mean()


@pytest.mark.parametrize(
    ("num_frames", "temporal_mode"), [(1, "video_frame"), (4, "video_frame"), (4, "one_to_frame"), (4, "one_to_video")]
)
def test_one_clip_is_learnt_by_heart(num_frames, temporal_mode):
    frames, raw_labels = render_synthetic_video(3, num_frames, SIZE, NUM_LABELS)
    processor = THEMaskVideoProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    batch = processor(frames, raw_labels, return_tensors="pt")
    assert len(batch["labels"].unique()) == NUM_LABELS + 1  # every class, and pixels without one

    model = small_model(num_frames, temporal_mode).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, STEPS, power=0.9)
    torch.manual_seed(0)
    for step in range(STEPS):
        warm_up = step < STEPS // 4
        optimizer.zero_grad()
        model(**batch, matching_rounds=1 if warm_up else 2).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        outputs = model.eval()(pixel_values_videos=batch["pixel_values_videos"])
    [prediction] = processor.post_process_semantic_segmentation(outputs, [SIZE])
    assert mean_iou(prediction, batch["labels"][0]) > 0.95

# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from transformers_themask import THEMaskVideoProcessor
from transformers_themask.data.clip_dataset import ClipDataset
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.data.transforms import ClipAugmentation
from transformers_themask.training.arguments import VSSTrainingArguments
from transformers_themask.training.evaluation import EvaluationVideos

FRAME_SIZE = (64, 80)
NUM_CLASSES = 8
# Shorter and longer than one evaluation block of six frames, and long enough for both consistency windows.
VAL_LENGTHS = (1, 5, 7, 18)


@pytest.fixture(scope="session")
def run_vss():
    """The script as a module."""
    path = Path(__file__).parents[2] / "scripts" / "run_vss.py"
    spec = importlib.util.spec_from_file_location("run_vss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """Synthetic videos: three to train on, and four of different lengths to score."""
    root = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic_dataset(
        root, num_train_videos=3, num_val_videos=len(VAL_LENGTHS), num_frames=max(VAL_LENGTHS), size=FRAME_SIZE
    )
    for video, length in zip((root / "val.txt").read_text().split(), VAL_LENGTHS, strict=True):
        for folder in ("origin", "mask"):
            for file in sorted((root / "data" / video / folder).iterdir())[length:]:
                file.unlink()
    return root


@pytest.fixture(scope="session")
def processor() -> THEMaskVideoProcessor:
    return THEMaskVideoProcessor(size={"height": 64, "width": 96})


@pytest.fixture
def clips(data_root, processor):
    """Builds the training clips for given frame offsets."""

    def build(frame_offsets=(0,), clips_per_video=4) -> ClipDataset:
        augmentation = ClipAugmentation(base_size=(80, 64), crop_size=(64, 64))
        return ClipDataset(
            videos=load_videos(data_root, "train"),
            frame_offsets=frame_offsets,
            processor=processor,
            augmentation=augmentation,
            seed=0,
            clips_per_video=clips_per_video,
        )

    return build


@pytest.fixture
def videos(data_root):
    """Builds the evaluation videos for a clip length."""

    def build(num_frames=1, frame_stride=3) -> EvaluationVideos:
        return EvaluationVideos(load_videos(data_root, "val"), num_frames, frame_stride)

    return build


@pytest.fixture
def training_arguments(tmp_path):
    """Builds quiet arguments in a folder of the test's own."""

    def build(**fields) -> VSSTrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "backbone_learning_rate_factor": 1.0,
        }
        return VSSTrainingArguments(**{**defaults, **fields})

    return build


@pytest.fixture(scope="session")
def official_facts():
    return json.loads((Path(__file__).parents[1] / "fixtures" / "data" / "data_facts.json").read_text())


class PixelClassifierConfig(PreTrainedConfig):
    model_type = "pixel_classifier"


class PixelClassifier(PreTrainedModel):
    """The simplest model a trainer can train: a linear classifier of each pixel's colour, its loss a plain mean."""

    config_class = PixelClassifierConfig
    has_matching_rounds = True

    def __init__(self, config: PixelClassifierConfig):
        super().__init__(config)
        self.classifier = nn.Linear(3, NUM_CLASSES)
        self.received_rounds: list[int | None] = []
        self.post_init()

    def loss_counts(self, labels, context=None):
        return torch.tensor([labels.numel()], dtype=torch.float64)

    def forward(self, pixel_values_videos, labels=None, context=None):
        self.received_rounds.append(None if context is None else context.matching_rounds)
        logits = self.classifier(pixel_values_videos.movedim(2, -1))
        is_labelled = (labels != 255).unsqueeze(-1)
        targets = nn.functional.one_hot(labels.long().clamp(max=NUM_CLASSES - 1), NUM_CLASSES)
        has_counts = context is not None and context.loss_counts is not None
        (count,) = context.loss_counts if has_counts else self.loss_counts(labels)
        loss_class = (is_labelled * (logits.sigmoid() - targets) ** 2).sum() / count / NUM_CLASSES
        loss_size = logits.square().sum() / count / NUM_CLASSES
        return ModelOutput(
            loss=loss_class + loss_size,
            loss_terms={"loss_class": loss_class, "loss_size": loss_size},
            statistics={"mean_logit": logits.mean()},
        )


@pytest.fixture
def pixel_classifier() -> PixelClassifier:
    torch.manual_seed(0)
    return PixelClassifier(PixelClassifierConfig())

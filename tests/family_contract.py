# SPDX-License-Identifier: Apache-2.0
"""What the package promises of every registered family, for test processes whose package has other families.

It names none of them: see `test_deleting_a_family.py` and `test_adding_a_family.py`, which run this file.
"""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoVideoProcessor, pipeline

from goldens import json_file, tensors, weights
from themask_command import main
from transformers_themask import AutoModelForVideoSemanticSegmentation, VideoSegmentationProcessor
from transformers_themask.conversion.checkpoints import convert_official_checkpoint, converter_for
from transformers_themask.data.sources import load_videos
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.export.export_model import export_model
from transformers_themask.publishing.model_card import write_model_card
from transformers_themask.registry import families

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
SIZE = (64, 64)
# Longer than what any family looks back.
NUM_FRAMES = 11
ROWS = {row.name: row for row in families()}

torch.set_num_threads(1)


def recorded_themask():
    mit = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 3, 4]}
    return weights("segmentor_1f"), {"num_attention_heads": 4, "backbone_config": {"model_type": "mit", **mit}}


def published_cffm():
    entries = json_file("checkpoint_keys_B1", FIXTURES / "cffm")
    return {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in entries}, {}


def recorded_mpvss():
    heads = {"segmenter_config": {"num_attention_heads": 4}, "motion_attention_heads": 4}
    return tensors("tiny_weights", FIXTURES / "mpvss"), heads


# By the family: an official checkpoint, and the fields that its shapes do not tell.
OFFICIAL = {"themask": recorded_themask, "cffm": published_cffm, "mpvss": recorded_mpvss}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic_dataset(root, num_train_videos=1, num_val_videos=1, num_frames=NUM_FRAMES, size=SIZE)
    return root


@pytest.fixture(scope="session")
def frames(data_root):
    """The path of a folder of frames, and these as arrays."""
    folder = data_root / "data" / "val_0000" / "origin"
    return folder, np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


@pytest.fixture(scope="module", params=ROWS)
def saved(request, data_root, tmp_path_factory):
    """A row with a tiny model of its family for the data's classes, saved with a processor."""
    names = dict(enumerate(load_videos(data_root, "val").class_names))
    torch.manual_seed(0)
    row = ROWS[request.param]
    label2id = {name: index for index, name in names.items()}
    model = row.tiny(num_labels=len(names), id2label=names, label2id=label2id).eval()
    folder = tmp_path_factory.mktemp(row.name)
    model.save_pretrained(folder)
    size = dict(zip(("height", "width"), SIZE, strict=True))
    fit = getattr(model.config, "fit", "stretch")
    VideoSegmentationProcessor(size=size, fit=fit, do_reduce_labels=True).save_pretrained(folder)
    return row, model, folder


def test_loads_with_every_auto_class(saved, frames):
    row, model, folder = saved
    processor = AutoVideoProcessor.from_pretrained(folder)
    batch = processor(frames[1][: model.config.num_frames if not row.is_native else 2], return_tensors="pt")
    auto_classes = [AutoModelForVideoSemanticSegmentation] if row.is_native else [AutoModel]
    with torch.no_grad():
        expected = model(**batch).scores()
        for auto_class in [AutoModelForVideoSemanticSegmentation, *auto_classes]:
            loaded = auto_class.from_pretrained(folder)
            assert type(loaded) is row.model
            assert torch.equal(loaded(**batch).scores(), expected)
    assert type(AutoConfig.from_pretrained(folder)) is row.config


def test_converts_official_checkpoints(saved):
    row, _, _ = saved
    assert bool(row.converters) == (row.name in OFFICIAL)
    for converter in row.converters:
        state_dict, overrides = OFFICIAL[row.name]()
        assert converter_for(state_dict) == (row, converter)
        config = converter.config_from_state_dict(state_dict, **overrides)
        model, report = convert_official_checkpoint(state_dict, config)
        assert type(model) is row.model
        assert not report.missing and not report.unknown


def test_trains_a_step_and_gets_a_card(saved, data_root, tmp_path, monkeypatch):
    row, model, folder = saved
    if row.is_native:
        pytest.skip("trained in Transformers, not here")
    references = getattr(model.config, "reference_offsets", range(1 - model.config.num_frames, 0))
    flags = {
        "data_root": data_root,
        "output_dir": tmp_path / "run",
        "model_type": row.name,
        "model_name_or_path": folder,
        "clips_per_video": 2,
        "per_device_train_batch_size": 2,
        "base_size": [*SIZE],
        "crop_size": [*SIZE],
        "frame_offsets": [*references, 0],
        "max_steps": 1,
        "logging_steps": 1,
    }
    words = [
        word for name, value in flags.items() for word in (f"--{name}", *(value if type(value) is list else [value]))
    ]
    switches = ["--do_train", "--do_eval", "--use_cpu", "--disable_tqdm", "true"]
    monkeypatch.setattr(sys, "argv", ["run_vss.py", *map(str, words), *switches])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / "run_vss.py"), run_name="__main__")
    assert not end.value.code
    with (tmp_path / "run" / "learning_curve.csv").open() as file:
        losses = [float(line["loss"]) for line in csv.DictReader(file) if line["loss"]]
    assert len(losses) == 1 and np.isfinite(losses).all()
    assert 0 <= json.loads((tmp_path / "run" / "results.json").read_text())["mean_iou"] <= 1
    assert row.introduction in write_model_card(tmp_path / "run").read_text()


def test_streams_in_every_mode(saved, frames):
    _, model, folder = saved
    processor = AutoVideoProcessor.from_pretrained(folder)
    for mode in model.stream_modes:
        session = model.stream(processor, mode=mode)
        labelled = [pair for frame in frames[1] for pair in session.step(frame)] + session.flush()
        assert [index for index, _ in labelled] == list(range(NUM_FRAMES))
        assert all(label_map.shape == SIZE for _, label_map in labelled)


def test_pipeline_and_command_give_the_same_label_maps(saved, frames, tmp_path):
    _, _, folder = saved
    path, arrays = frames
    pipe = pipeline("video-semantic-segmentation", model=str(folder), device="cpu")
    maps = pipe(arrays)["segmentation"]
    assert maps.shape == arrays.shape[:3]
    assert main(["segment", str(path), "--model", str(folder), "--labels", str(tmp_path / "maps")]) == 0
    written = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "maps").iterdir())]
    assert np.array_equal(np.stack(written), maps)


def test_exports_or_says_why_not(saved, tmp_path):
    _, model, folder = saved
    processor = AutoVideoProcessor.from_pretrained(folder)
    try:
        differences = export_model(model, processor, tmp_path / "exported", formats=("torch",))
    except ValueError as error:
        assert str(error).strip() and "\n" not in str(error)
    else:
        assert differences and all(path.is_file() for path in differences)

# SPDX-License-Identifier: Apache-2.0
"""A saved model whose results would be wrong is rejected where it is loaded."""

import json

import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, pipeline

from themask_command import main
from tiny import tiny_model
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.inference.loading import load_class_names, load_model
from transformers_themask.registry import family_of
from transformers_themask.videos.video_writer import VideoWriter


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(num_frames=2)
    model.save_pretrained(tmp_path / "model")
    THEMaskVideoProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


@pytest.fixture
def video(tmp_path):
    with VideoWriter(tmp_path / "video.mp4", 10) as writer:
        for level in range(3):
            writer.write(np.full((32, 48, 3), 40 * level, np.uint8))
    return tmp_path / "video.mp4"


def rejects(folder, video, capsys, message):
    """The library, the pipeline and the command reject a model with the same words, the command in one line."""
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    with pytest.raises(ValueError, match=message):
        pipeline("video-semantic-segmentation", model=str(folder))
    assert main(["segment", str(video), "--model", str(folder), "--labels", str(folder.parent / "labels")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not (folder.parent / "labels").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_weights_that_are_not_finite_are_rejected(saved, video, capsys, value, place):
    folder, model = saved
    with torch.no_grad():
        parameter = list(model.parameters())[place]
        parameter.view(-1)[-1] = value
    model.save_pretrained(folder)
    rejects(folder, video, capsys, "must be finite")


@pytest.mark.parametrize("id2label", [{1: "cat", 2: "dog"}, {0: "cat", 2: "dog"}, {-1: "cat", 0: "dog"}])
def test_classes_that_are_not_0_to_n_minus_1_are_rejected(saved, video, capsys, id2label):
    folder, _ = saved
    tiny_model(num_frames=2, num_labels=2).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    rejects(folder, video, capsys, "`id2label` must name the classes 0 to 1 without gaps")
    with pytest.raises(ValueError, match="without gaps"):
        load_class_names(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_std", [0.0, 1.0, 1.0]), ("image_std", [-1.0] * 3), ("rescale_factor", 0.0), ("image_mean", [1e400] * 3)],
)
def test_constants_that_make_every_frame_nan_are_rejected(saved, name, value):
    folder, _ = saved
    path = next(folder.glob("*preprocessor_config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=rf"`{name}` must be finite"):
        load_model(folder)


def test_running_statistics_that_are_not_finite_are_rejected(saved, video, capsys):
    folder, _ = saved
    model = family_of("cffm").tiny()
    (statistics,) = [value for name, value in model.named_buffers() if name.endswith("running_var")][:1]
    statistics[0] = float("nan")
    model.save_pretrained(folder)
    rejects(folder, video, capsys, "must be finite")


def test_constants_of_the_image_processor_of_an_image_model_are_checked(tmp_path):
    config = SegformerConfig(
        hidden_sizes=(8, 8, 8, 8), depths=(1, 1, 1, 1), num_attention_heads=(1, 1, 1, 1), decoder_hidden_size=8
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    SegformerImageProcessor(image_std=[1.0, 0.0, 1.0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`image_std` must be finite and positive"):
        load_model(tmp_path)
    SegformerImageProcessor(do_normalize=False, image_mean=None, image_std=None).save_pretrained(tmp_path)
    load_model(tmp_path)


def test_a_sound_model_is_loaded(saved):
    folder, model = saved
    loaded, _ = load_model(folder)
    assert load_class_names(folder) == [model.config.id2label[index] for index in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), model.parameters(), strict=True))

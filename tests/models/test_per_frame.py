# SPDX-License-Identifier: Apache-2.0
"""Image segmentation models as video models: they give what Transformers gives, frame by frame."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SegformerConfig,
    SegformerImageProcessor,
    pipeline,
)
from transformers.utils import ModelOutput

from tiny import random_clips
from tiny_segmenters import SEGMENTERS, SEMANTIC, WITH_QUERIES, oneformer, per_frame_model, save_tokenizer, segformer
from transformers_themask import (
    AutoModelForVideoSemanticSegmentation,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
    THEMaskConfig,
    THEMaskVideoProcessor,
)
from transformers_themask.models.modeling_per_frame import PerFrameForVideoSemanticSegmentationOutput as Output
from transformers_themask.models.step_context import StepContext
from transformers_themask.models.video_processing_per_frame import PerFrameVideoProcessor

SIZE = (64, 64)


def clips(batch_size=2, num_frames=2, seed=0):
    frames, labels = random_clips(batch_size, num_frames, SIZE, seed)
    return frames.double(), labels.to(torch.uint8)


def task_of(model):
    """What OneFormer takes besides a frame."""
    return {"task_inputs": torch.tensor([model.config.task_inputs])} if model.config.task_inputs else {}


def clip_generators(indices):
    return [torch.Generator().manual_seed(index) for index in indices]


# ---- what the image model gives ----


@pytest.mark.parametrize("name", list(SEMANTIC))
def test_scores_are_those_of_the_image_model(name):
    model = per_frame_model(name).double()
    frames, _ = clips()
    with torch.no_grad():
        logits = model(pixel_values_videos=frames).logits
        for clip in range(2):
            for frame in range(2):
                expected = model.segmenter(frames[clip, frame][None]).logits[0]
                torch.testing.assert_close(logits[clip, frame], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", list(WITH_QUERIES))
def test_queries_are_those_of_the_image_model(name):
    model = per_frame_model(name).double()
    frames, _ = clips()
    with torch.no_grad():
        outputs = model(pixel_values_videos=frames)
        # MaskFormer by itself fails without them.
        expected = model.segmenter(frames[1, 0][None], output_hidden_states=True, **task_of(model))
    for kind in ("class_queries_logits", "masks_queries_logits"):
        torch.testing.assert_close(outputs[f"frame_{kind}"][1, 0], expected[kind][0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", list(SEMANTIC))
def test_the_loss_of_pixels_is_that_of_the_image_model(name):
    model = per_frame_model(name).double()
    frames, labels = clips()
    with torch.no_grad():
        outputs = model(pixel_values_videos=frames, labels=labels)
        expected = model.segmenter(frames.flatten(0, 1), labels=labels.flatten(0, 1).long()).loss
    torch.testing.assert_close(outputs.loss, expected, rtol=1e-12, atol=0)
    assert outputs.loss_terms == {"loss_pixels": outputs.loss}


@pytest.mark.parametrize("name", ["mask2former", "eomt"])
def test_the_loss_of_queries_is_that_of_the_image_model_up_to_its_divisors(name, monkeypatch):
    """Class terms: a weighted mean in both. Mask terms: both are divided by the number of targets of the batch."""
    model = per_frame_model(name).double().train()
    frames, labels = clips()
    points = torch.rand(1, 64 * 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = torch.rand

    def same_points(*shape, **options):  # for every mask, on both sides
        return points[:, : shape[1]].repeat(shape[0], 1, 1) if len(shape) == 3 else draw(*shape, **options)

    monkeypatch.setattr(torch, "rand", same_points)
    outputs = model(
        pixel_values_videos=frames,
        labels=labels,
        context=StepContext(point_sampler=lambda kind, layers, shape, generator: points[:, : shape[2]].expand(shape)),
    )
    maps = labels.flatten(0, 1).long()
    class_labels = [frame.unique()[frame.unique() != 255] for frame in maps]
    mask_labels = [
        (frame == classes[:, None, None]).double() for frame, classes in zip(maps, class_labels, strict=True)
    ]
    expected = model.segmenter(frames.flatten(0, 1), mask_labels=mask_labels, class_labels=class_labels).loss
    torch.testing.assert_close(outputs.loss, expected.squeeze(), rtol=1e-6, atol=0)
    assert outputs.statistics["primary_query_share"] == sum(map(len, class_labels)) / 4 / 8


def test_all_predictions_of_an_encoder_with_queries_are_supervised():
    model = per_frame_model("eomt").train()
    frames, _ = clips()
    predictions = model._predict_with_queries(frames.float().flatten(0, 1), all_predictions=True)
    assert len(predictions) == 1 + 2  # two of its layers have queries
    expected = model.segmenter(frames.float().flatten(0, 1))
    torch.testing.assert_close(predictions[-1].mask_logits[:, 0], expected.masks_queries_logits)
    torch.testing.assert_close(predictions[-1].class_logits, expected.class_queries_logits)


# ---- shares of a step ----


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_shares_of_split_batches_add_up_to_the_joint_loss(name):
    model = per_frame_model(name).double()
    frames, labels = clips(batch_size=3)
    labels[0, :, :40] = 255  # so that the parts differ in what they are divided by
    split = [copy.deepcopy(model) for _ in range(2)]

    def loss_and_gradients(model, parts):
        counts = sum(model.loss_counts(labels[part]) for part in parts)
        losses = []
        for part in parts:
            outputs = model(
                pixel_values_videos=frames[part],
                labels=labels[part],
                context=StepContext(counts, point_generator=clip_generators(part)),
            )
            outputs.loss.backward()
            losses.append(outputs.loss.detach())
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return sum(losses), gradients

    joint, joint_gradients = loss_and_gradients(split[0], [[0, 1, 2]])
    summed, summed_gradients = loss_and_gradients(split[1], [[0], [1, 2]])
    torch.testing.assert_close(summed, joint, rtol=1e-9, atol=1e-9)
    assert summed_gradients.keys() == joint_gradients.keys()
    for parameter, gradient in joint_gradients.items():
        torch.testing.assert_close(summed_gradients[parameter], gradient, rtol=1e-9, atol=1e-9)
    alone = model(
        pixel_values_videos=frames, labels=labels, context=StepContext(point_generator=clip_generators([0, 1, 2]))
    ).loss
    torch.testing.assert_close(alone, joint, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(SEGMENTERS))
def test_loss_without_labels_is_finite_and_has_gradients(name):
    model = per_frame_model(name).train()
    frames, labels = clips()
    outputs = model(pixel_values_videos=frames.float(), labels=torch.full_like(labels, 255))
    outputs.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    if name in SEMANTIC:
        assert outputs.loss == 0 and not any(gradient.any() for gradient in gradients)


def test_counts_are_those_of_labelled_pixels_or_of_targets():
    labels = torch.full((2, 2, *SIZE), 255, dtype=torch.uint8)
    labels[0, 0, :2, :3] = 4
    labels[0, 1, :1, :1] = 0
    labels[0, 1, 1:, 1:2] = 5
    assert per_frame_model("segformer").loss_counts(labels).tolist() == [6 + 1 + 63]
    num_targets, class_weights = per_frame_model("mask2former").loss_counts(labels).tolist()
    assert num_targets == 3 and class_weights == pytest.approx(3 + 0.1 * (4 * 8 - 3))


@pytest.mark.parametrize("name", ["segformer", "mask2former", "eomt"])
def test_gradient_checkpointing_reaches_the_image_model(name):
    frames, labels = clips()
    gradients = []
    for checkpointing in (False, True):
        model = per_frame_model(name).double().train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            flags = [
                m.gradient_checkpointing for m in model.segmenter.modules() if hasattr(m, "gradient_checkpointing")
            ]
            assert flags and all(flags)
        torch.manual_seed(0)
        model(
            pixel_values_videos=frames, labels=labels, context=StepContext(point_generator=clip_generators([0, 1]))
        ).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-9, atol=1e-12)


# ---- saving and loading ----


@pytest.fixture(params=list(SEGMENTERS))
def saved(request, tmp_path):
    model = per_frame_model(request.param)
    model.save_pretrained(tmp_path / "video")
    model.segmenter.save_pretrained(tmp_path / "image")
    if request.param == "oneformer":
        save_tokenizer(tmp_path / "image")
    return model, tmp_path


def assert_same_weights(ours, expected):
    assert ours.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_a_saved_model_comes_back_from_every_class(saved):
    model, folder = saved
    for auto_class in (AutoModel, AutoModelForVideoSemanticSegmentation, PerFrameForVideoSemanticSegmentation):
        loaded = auto_class.from_pretrained(folder / "video")
        assert type(loaded) is PerFrameForVideoSemanticSegmentation and not loaded.training
        assert_same_weights(loaded, model)


def test_the_image_model_comes_back_as_its_own_class(saved):
    model, folder = saved
    auto_class = AutoModelForSemanticSegmentation if model.config.is_semantic else AutoModelForUniversalSegmentation
    loaded, loading = auto_class.from_pretrained(folder / "image", output_loading_info=True)
    assert type(loaded) is type(model.segmenter) and not any(loading.values())
    assert_same_weights(loaded, model.segmenter)


def test_an_ordinary_checkpoint_of_the_image_model_loads(saved):
    model, folder = saved
    for loaded in (
        PerFrameForVideoSemanticSegmentation.from_pretrained(folder / "image"),
        AutoModel.from_pretrained(folder / "image", config=model.config),
    ):
        assert type(loaded) is PerFrameForVideoSemanticSegmentation and not loaded.training
        assert loaded.config.num_labels == 6
        assert_same_weights(loaded, model)


def test_half_precision_is_kept_through_a_file(tmp_path):
    model = per_frame_model("segformer").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path, dtype="auto").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path, dtype=torch.float32).parameters()} == {torch.float32}


def test_a_new_image_model_is_initialised_as_by_its_own_class():
    torch.manual_seed(0)
    expected = AutoModelForSemanticSegmentation.from_config(
        SegformerConfig(**{**segformer().to_dict(), "num_labels": 6})
    )
    assert_same_weights(per_frame_model("segformer", seed=0).segmenter, expected)


def test_configuration_survives_a_round_trip(tmp_path):
    config = PerFrameConfig(segmenter_config=segformer(), id2label={0: "road", 1: "car", 2: "sky"}, ignore_value=200)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is PerFrameConfig and loaded.to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path)}
    assert loaded.segmenter_config.id2label == {0: "road", 1: "car", 2: "sky"}
    assert loaded.segmenter_config.semantic_loss_ignore_index == 200
    assert PerFrameConfig(segmenter_config=loaded.segmenter_config).id2label == loaded.id2label
    assert PerFrameConfig().segmenter_config.model_type == "segformer"


REMOTE = """
import sys
sys.modules["transformers_themask"] = None  # as if it were not installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoVideoProcessor
folder = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]))  # sums are equal to the last bit only with as many
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    outputs = model(**load_file(folder + "/inputs.safetensors"))
maps = torch.stack(processor.post_process_semantic_segmentation(outputs, [(50, 60), (50, 60)]))
save_file({"logits": outputs.logits.contiguous(), "maps": maps}, folder + "/results.safetensors")
"""


def test_remote_code_gives_the_same_without_the_package(tmp_path, monkeypatch):
    model = per_frame_model("segformer")
    processor = PerFrameVideoProcessor(SegformerImageProcessor(size={"height": 64, "width": 64}))
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    frames = clips()[0].float()
    save_file({"pixel_values_videos": frames}, tmp_path / "inputs.safetensors")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    process = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path), str(torch.get_num_threads())], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    results = load_file(tmp_path / "results.safetensors")
    with torch.no_grad():
        outputs = model(pixel_values_videos=frames)
    assert torch.equal(results["logits"], outputs.logits)
    maps = processor.post_process_semantic_segmentation(outputs, [(50, 60), (50, 60)])
    assert torch.equal(results["maps"], torch.stack(maps))
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_per_frame.PerFrameForVideoSemanticSegmentation"
    assert Path(tmp_path / "configuration_per_frame.py").is_file()
    assert Path(tmp_path / "video_processing_per_frame.py").is_file()


@pytest.mark.parametrize("name", ["segformer", "mask2former"])
def test_the_pipeline_labels_every_frame(tmp_path, name):
    model, processor = per_frame_model(name), THEMaskVideoProcessor(size={"height": 64, "width": 64})
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    video = np.random.default_rng(0).integers(0, 256, (3, 50, 60, 3), dtype=np.uint8)
    result = pipeline("video-semantic-segmentation", model=str(tmp_path))(video)
    with torch.no_grad():
        outputs = model(**processor(video, return_tensors="pt"))
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(50, 60)])
    assert np.array_equal(result["segmentation"], expected.numpy())


# ---- label maps ----


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_label_maps_of_scores_are_those_of_the_image_processor(stride):
    generator = torch.Generator().manual_seed(stride)
    logits = torch.randn(2, 3, 6, 64 // stride, 96 // stride, generator=generator, dtype=torch.float64).float()
    maps = THEMaskVideoProcessor().post_process_semantic_segmentation(Output(logits=logits), [(75, 100)] * 2)
    expected = SegformerImageProcessor().post_process_semantic_segmentation(
        Output(logits=logits.flatten(0, 1)), target_sizes=[(75, 100)] * 6
    )
    assert (torch.cat(maps) != torch.stack(expected)).float().mean() < 1e-4  # ties in float32


def test_label_maps_of_queries_are_those_of_the_image_processor():
    """Which enlarges masks to 384 x 384 first, so they are given at that size."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(1, 2, 8, 7, generator=generator)
    masks = torch.nn.functional.interpolate(torch.randn(2, 8, 24, 24, generator=generator), (384, 384))[None]
    outputs = Output(frame_class_queries_logits=classes, frame_masks_queries_logits=masks)
    (maps,) = THEMaskVideoProcessor().post_process_semantic_segmentation(outputs, [(300, 400)])
    native = ModelOutput(class_queries_logits=classes[0], masks_queries_logits=masks[0])
    expected = Mask2FormerImageProcessor().post_process_semantic_segmentation(native, target_sizes=[(300, 400)] * 2)
    assert (maps != torch.stack(expected)).float().mean() < 1e-4


def test_padding_is_left_out_of_scores():
    """Scores of 60 x 90 content in a 64 x 96 input, at stride 2."""
    processor = THEMaskVideoProcessor(size={"shortest_edge": 60, "longest_edge": 90}, fit="pad")
    logits = torch.randn(1, 1, 5, 32, 48, generator=torch.Generator().manual_seed(0))
    logits[..., 30:, :] = logits[..., 45:] = float("-inf")  # nothing there may matter
    logits[:, :, 0, 30:, :] = logits[:, :, 0, :, 45:] = 100
    outputs = Output(logits=logits)
    (maps,) = processor.post_process_semantic_segmentation(outputs, [(60, 90)], via_input_size=False)
    inside = torch.nn.functional.interpolate(logits[0], (64, 96), mode="bilinear")[:, :, :59, :89].argmax(1)
    assert torch.equal(maps[:, :59, :89], inside.to(torch.uint8))
    (twice,) = processor.post_process_semantic_segmentation(outputs, [(60, 90)], via_input_size=True)
    assert torch.equal(twice[:, :59, :89], maps[:, :59, :89])


def test_scores_need_target_sizes():
    outputs = Output(logits=torch.zeros(1, 1, 3, 8, 8))
    with pytest.raises(ValueError, match="`target_sizes` must be given for `logits`"):
        THEMaskVideoProcessor().post_process_semantic_segmentation(outputs)


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        ({"model_type": "detr"}, "must describe a model that segments single images .* Got 'detr'"),
        ({"model_type": "videomt"}, "must describe a model that segments single images .* Got 'videomt'"),
        ({"model_type": "bert"}, "must describe a model that segments single images .* Got 'bert'"),
        (THEMaskConfig(), "must describe a model that segments single images .* Got 'themask'"),
        ({"model_type": "unet"}, "must be the configuration of a segmentation model.* Got 'unet'"),
        ("segformer", "must be the configuration of a segmentation model.* Got 'segformer'"),
    ],
)
def test_model_that_does_not_segment_images_is_rejected(segmenter, message):
    with pytest.raises(ValueError, match=message) as raised:
        PerFrameConfig(segmenter_config=segmenter)
    assert "\n" not in str(raised.value)


def test_single_class_is_rejected():
    with pytest.raises(ValueError, match=r"`num_labels` must be at least 2 for segformer segmenters. Got 1"):
        per_frame_model("segformer", num_labels=1)


@pytest.mark.parametrize("name", [name for name in SEGMENTERS if name != "eomt"])
def test_frames_may_be_of_another_size_than_the_configurations(name):
    model, (frames, labels) = per_frame_model(name), random_clips(1, 1, (96, 96) if name == "dpt" else (32, 96))
    assert model(pixel_values_videos=frames, labels=labels).loss.isfinite()


def test_inputs_of_the_wrong_size_are_rejected():
    with pytest.raises(ValueError, match=r"must be square for eomt segmenters, best .*'width': 64\}\. Got 64x96"):
        clip, labels = torch.zeros(1, 1, 3, 64, 96), torch.zeros(1, 1, 64, 96, dtype=torch.uint8)
        per_frame_model("eomt")(pixel_values_videos=clip, labels=labels)
    with pytest.raises(ValueError, match=r"must be square for eomt segmenters, best .*'width': 64\}\. Got 32x96"):
        per_frame_model("eomt")(pixel_values_videos=torch.zeros(1, 1, 3, 32, 96))
    with pytest.raises(ValueError, match=r"must be square for eomt segmenters, best .*'width': 64\}\. Got 96x96"):
        per_frame_model("eomt")(pixel_values_videos=torch.zeros(1, 1, 3, 96, 96))
    with pytest.raises(ValueError, match=r"must be square for dpt segmenters, best .*'width': 64\}\. Got 64x96"):
        per_frame_model("dpt")(pixel_values_videos=torch.zeros(1, 1, 3, 64, 96))
    with pytest.raises(ValueError, match="must hold at least one frame"):
        per_frame_model("segformer")(pixel_values_videos=torch.zeros(1, 0, 3, 64, 96))
    with pytest.raises(ValueError, match="`task_inputs` must be the 24 token ids of 'the task is semantic'"):
        PerFrameForVideoSemanticSegmentation(PerFrameConfig(segmenter_config=oneformer()))

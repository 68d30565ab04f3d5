# SPDX-License-Identifier: Apache-2.0
"""Frames and labels into tensors, and scores back into label maps."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from transformers import AutoVideoProcessor

from goldens import FIXTURES
from tiny import tiny_model
from transformers_themask import THEMaskVideoProcessor
from transformers_themask.models.modeling_themask import THEMaskForVideoSemanticSegmentationOutput as Output
from transformers_themask.models.scores_to_labels import enlarged_argmax, twice_enlarged_argmax

DATA_FIXTURES = FIXTURES.parent / "data"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def frames_of(num_frames=3, height=40, width=52, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, height // 4, width // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def denormalised(pixel_values):
    return (pixel_values * STD[:, None, None] + MEAN[:, None, None]) * 255


@pytest.mark.parametrize("fact", json.loads((DATA_FIXTURES / "data_facts.json").read_text())["aligned_resize_test"])
def test_sizes_are_those_of_the_official_test_pipeline(fact):
    processor = THEMaskVideoProcessor()
    height, width = fact["input_hw"]
    assert list(processor.resized_size(height, width)) == fact["rescaled_hw"]
    # One pixel row stands for the frame: a full one would only take longer.
    batch = processor(torch.zeros(1, 3, height, width, dtype=torch.uint8), return_tensors="pt")
    assert list(batch["pixel_values_videos"].shape[-2:]) == fact["output_hw"]


def test_resized_frames_match_the_recorded_ones():
    recorded = load_file(DATA_FIXTURES / "data_transforms.safetensors")
    processor = THEMaskVideoProcessor(size={"shortest_edge": 48, "longest_edge": 85})
    video = np.stack([recorded[f"in.frame{index}_bgr"].numpy()[..., ::-1] for index in range(2)])
    ours = processor(video, return_tensors="pt")["pixel_values_videos"][0]
    for index in range(2):
        official = recorded[f"test_norm.frame{index}"]
        # Two grey levels: OpenCV and torchvision round bilinear weights differently.
        assert (denormalised(ours[index]) - denormalised(official)).abs().max() <= 2.01


@pytest.mark.parametrize("kind", ["array", "list of arrays", "PIL", "tensor", "batch of lists"])
def test_every_kind_of_video_gives_the_same_tensor(kind):
    frames = frames_of()
    videos = {
        "array": frames,
        "list of arrays": list(frames),
        "PIL": [Image.fromarray(frame) for frame in frames],
        "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2),
        "batch of lists": [[Image.fromarray(frame) for frame in frames]],
    }
    processor = THEMaskVideoProcessor(size={"height": 32, "width": 64})
    expected = processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert expected.shape == (1, 3, 3, 32, 64)
    assert torch.equal(processor(videos[kind], return_tensors="pt")["pixel_values_videos"], expected)


def test_a_video_file_is_decoded(tmp_path):
    frames = frames_of(4, 64, 96)
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    processor = THEMaskVideoProcessor(do_resize=False)
    decoded = processor(str(path), return_tensors="pt")["pixel_values_videos"]
    expected = processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert (denormalised(decoded) - denormalised(expected)).abs().mean() < 2  # colour conversion only


def test_frames_with_transparency_are_read_as_rgb():
    frames = frames_of()
    processor = THEMaskVideoProcessor(size={"height": 32, "width": 64})
    transparent = [Image.fromarray(frame).convert("RGBA") for frame in frames]
    expected = processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(processor(transparent, return_tensors="pt")["pixel_values_videos"], expected)


def test_missing_file_is_named_in_the_error():
    with pytest.raises(FileNotFoundError, match=r"existing files\. Got nowhere\.mp4"):
        THEMaskVideoProcessor()("nowhere.mp4")


@pytest.mark.parametrize("size", [64, {"shortest_edge": 48}])
def test_options_of_a_call_hold_for_frames_and_labels_alike(size):
    maps = np.ones((3, 40, 52), dtype=np.uint8)
    batch = THEMaskVideoProcessor()(frames_of(), segmentation_maps=maps, size=size, fit="pad", return_tensors="pt")
    content = (batch["pixel_values_videos"] != 0).any(2)
    assert torch.equal(content, batch["labels"] == 0)


def test_padding_adds_zeros_after_normalisation_and_void_labels():
    frames, maps = frames_of(2, 40, 52), np.full((2, 40, 52), 3, dtype=np.uint8)
    processor = THEMaskVideoProcessor(fit="pad", do_resize=False)
    batch = processor(frames, segmentation_maps=maps, return_tensors="pt")
    pixel_values, labels = batch["pixel_values_videos"][0], batch["labels"][0]
    assert pixel_values.shape == (2, 3, 64, 64) and labels.shape == (2, 64, 64)
    assert (pixel_values[:, :, 40:] == 0).all() and (pixel_values[..., 52:] == 0).all()
    expected = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(pixel_values[..., :40, :52], expected)
    assert (labels[:, :40, :52] == 2).all() and (labels[:, 40:] == 255).all() and (labels[..., 52:] == 255).all()


def test_labels_are_reduced_as_the_official_table_says():
    facts = json.loads((DATA_FIXTURES / "data_facts.json").read_text())
    table = torch.tensor(facts["reduce_zero_label_map_0_to_255"])
    raw = torch.arange(256)
    assert torch.equal(THEMaskVideoProcessor().reduce_labels(raw), table)
    assert torch.equal(raw, torch.arange(256))  # the official code changes its input


def test_labels_follow_frames_by_nearest_neighbour():
    maps = np.random.default_rng(0).integers(0, 7, (2, 48, 80), dtype=np.uint8)
    processor = THEMaskVideoProcessor(size={"height": 96, "width": 64}, do_reduce_labels=False)
    batch = processor(frames_of(2, 48, 80), segmentation_maps=maps, return_tensors="pt")
    expected = [np.array(Image.fromarray(m).resize((64, 96), Image.Resampling.NEAREST)) for m in maps]
    assert torch.equal(batch["labels"][0], torch.from_numpy(np.stack(expected)).long())


def test_options_survive_saving(tmp_path):
    THEMaskVideoProcessor(fit="pad", size={"shortest_edge": 96}, ignore_index=7).save_pretrained(tmp_path)
    loaded = THEMaskVideoProcessor.from_pretrained(tmp_path, do_reduce_labels=False)
    assert loaded.fit == "pad" and loaded.ignore_index == 7 and loaded.do_reduce_labels is False
    assert loaded.resized_size(48, 96) == (96, 192)
    assert type(AutoVideoProcessor.from_pretrained(tmp_path)).__name__ == "THEMaskVideoProcessor"


# ---- label maps ----


def smooth_scores(num_labels=20, height=18, width=31, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, num_labels, 4, 6, generator=generator)
    return interpolate(coarse, (height, width), mode="bicubic")[0]


@pytest.mark.parametrize("size", [(72, 124), (71, 117), (18, 31), (9, 16), (200, 33)])
@pytest.mark.parametrize(
    "scores", [smooth_scores(), torch.rand(300, 18, 31, generator=torch.Generator().manual_seed(1))]
)
def test_enlarged_argmax_equals_enlarging_all_classes(scores, size):
    ours = enlarged_argmax(scores, size, (18 / size[0], 31 / size[1]))
    dense = interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    top = dense.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-5  # where rounding cannot decide
    assert clear.float().mean() > 0.99
    assert torch.equal(ours.long()[clear], dense.argmax(0)[clear])
    assert ours.dtype == (torch.uint8 if len(scores) <= 256 else torch.int32)


def test_official_double_resize_equals_the_dense_one():
    scores = smooth_scores(num_labels=37)
    ours = twice_enlarged_argmax(scores, (72, 124), (72, 124), (60, 101))
    dense = interpolate(scores[None], (72, 124), mode="bilinear", align_corners=False)
    dense = interpolate(dense, (60, 101), mode="bilinear", align_corners=False)[0]
    assert torch.equal(ours.long(), dense.argmax(0))


def outputs_with(class_logits, masks, frame_class_logits=None, frame_masks=None):
    return Output(
        class_queries_logits=class_logits,
        masks_queries_logits=masks,
        frame_class_queries_logits=frame_class_logits,
        frame_masks_queries_logits=frame_masks,
    )


def test_video_and_frame_scores_count_half_each():
    generator = torch.Generator().manual_seed(0)
    classes, frame_classes = torch.randn(1, 5, 4, generator=generator), torch.randn(1, 2, 5, 4, generator=generator)
    masks, frame_masks = (torch.randn(1, 2, 5, 8, 8, generator=generator) for _ in range(2))
    [labels] = THEMaskVideoProcessor().post_process_semantic_segmentation(
        outputs_with(classes, masks, frame_classes, frame_masks), [(8, 8)]
    )
    video = torch.einsum("bqk,btqhw->btkhw", classes.softmax(-1)[..., :3], masks.sigmoid())
    frame = torch.einsum("btqk,btqhw->btkhw", frame_classes.softmax(-1)[..., :3], frame_masks.sigmoid())
    assert torch.equal(labels.long(), (video + frame)[0].argmax(1))


def test_scores_of_half_precision_outputs_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    classes, masks = (torch.randn(shape, generator=generator) for shape in ((1, 20, 7), (1, 1, 20, 16, 24)))
    outputs, processor = outputs_with(classes, masks), THEMaskVideoProcessor()
    (expected,) = processor.post_process_semantic_segmentation(outputs)
    with torch.autocast("cpu", torch.bfloat16):
        (labels,) = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("via_input_size", [False, True])
@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_label_maps_are_aligned_with_the_frames(fit, via_input_size):
    """A network that copies its input, class 1 where a frame is bright: the label map must show the bright square."""
    frames = np.zeros((1, 120, 200, 3), dtype=np.uint8)
    frames[:, 40:80, 60:140] = 255
    processor = THEMaskVideoProcessor(size={"shortest_edge": 90, "longest_edge": 150}, fit=fit, do_normalize=False)
    pixel_values = processor(frames, return_tensors="pt")["pixel_values_videos"]
    bright = interpolate(pixel_values[:, 0, :1], scale_factor=0.25, mode="area") * 40 - 20
    outputs = outputs_with(torch.tensor([[[9.0, -9, -9], [-9, 9, -9]]]), torch.stack([-bright, bright], 2))
    [labels] = processor.post_process_semantic_segmentation(outputs, [(120, 200)], via_input_size=via_input_size)
    truth = torch.from_numpy(frames[0, ..., 0] > 0)
    wrong = (labels[0].bool() != truth).float().mean()
    assert wrong < 0.02  # the rim of the square, blurred by a quarter-size map


def test_peak_memory_of_label_maps_is_independent_of_the_classes():
    model = tiny_model(num_labels=200)
    outputs = model(pixel_values_videos=torch.randn(1, 1, 3, 64, 64))
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        THEMaskVideoProcessor().post_process_semantic_segmentation(outputs, [(720, 1280)])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 720 * 1280 * 8 * 4  # 200 dense float maps would take 200 x 4 bytes a pixel


def test_without_target_sizes_labels_have_the_networks_input_size():
    outputs = tiny_model()(pixel_values_videos=torch.randn(2, 3, 3, 32, 64))
    labels = THEMaskVideoProcessor().post_process_semantic_segmentation(outputs)
    assert [tuple(item.shape) for item in labels] == [(3, 32, 64)] * 2


# ---- bad input ----


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda p: p(frames_of(), segmentation_maps=np.zeros((2, 40, 52), int)), "one map per frame. Got 2 for 3"),
        (lambda p: p(frames_of(), segmentation_maps=np.zeros((2, 3, 40, 52), int)), "one per video. Got 2 for 1"),
        (lambda p: p(frames_of(), segmentation_maps=np.zeros((3, 52, 40), int)), r"\(40, 52\). Got \(52, 40\)"),
        (lambda p: p(frames_of(), segmentation_maps=np.zeros(3, int)), "3 dimensions"),
        (lambda p: p(frames_of(), segmentation_maps=np.zeros((3, 40, 52))), "integer ids of at least 0. Got torch.f"),
        (lambda p: p(frames_of(), segmentation_maps=np.full((3, 40, 52), -2)), "integer ids of at least 0"),
        (lambda p: p([]), "at least one frame"),
        (lambda p: p([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)]), "frames of one size"),
        (lambda p: p(frames_of(), do_center_crop=True, crop_size=32), "`do_center_crop` must be False"),
        (
            lambda p: p.post_process_semantic_segmentation(Output()),
            "must hold masks",
        ),
        (lambda p: p(frames_of(), fit="crop"), "`fit` must be 'stretch' or 'pad'. Got 'crop'"),
        (lambda p: p([frames_of(), frames_of(2)], return_tensors="pt"), "one shape"),
        (lambda p: p.resized_size(10, 10, {"max_height": 3}), "`size` must give"),
        (
            lambda p: p.post_process_semantic_segmentation(
                outputs_with(torch.zeros(1, 2, 3), torch.zeros(1, 1, 2, 8, 8)), []
            ),
            "one \\(height, width\\) per video. Got 0 for 1",
        ),
    ],
)
def test_invalid_input_is_rejected_with_one_line(act, words):
    with pytest.raises(ValueError, match=words):
        act(THEMaskVideoProcessor())

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of Transformers' image models: a frame is prepared, scored and labelled as a picture is."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    AutoVideoProcessor,
    SamConfig,
    SamModel,
    SegformerForImageClassification,
    SegformerImageProcessor,
)

from tiny_segmenters import save_native, save_videomt, segformer
from tolerances import assert_equal_up_to_rounding
from transformers_themask import (
    AutoModelForVideoSemanticSegmentation,
    PerFrameConfig,
    PerFrameForVideoSemanticSegmentation,
)
from transformers_themask.inference.loading import load_model, load_pretrained, load_processor
from transformers_themask.inference.segment import segment_frames

# Every form of size and every option that a published checkpoint of the family uses.
CHECKPOINTS = {
    "segformer": ("segformer", {"size": {"height": 64, "width": 96}}),
    "segformer_odd_size": ("segformer", {"size": {"height": 60, "width": 90}, "do_normalize": False}),
    "segformer_as_it_is": ("segformer", {"do_resize": False}),
    "upernet": ("upernet", {"size": {"height": 64, "width": 96}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
    "dpt": ("dpt", {"size": {"height": 64, "width": 64}}),
    "dpt_larger_than_in_training": ("dpt", {"size": {"height": 96, "width": 96}}),
    "beit": ("beit", {"size": {"height": 64, "width": 64}, "do_center_crop": False}),
    "mobilevit": ("mobilevit", {"size": {"shortest_edge": 64}, "do_center_crop": False}),
    "mask2former": ("mask2former", {"size": {"shortest_edge": 70, "longest_edge": 120}}),
    "mask2former_at_its_longest": ("mask2former", {"size": {"shortest_edge": 70, "longest_edge": 80}}),
    "mask2former_padded": (
        "mask2former",
        {"size": {"shortest_edge": 64, "longest_edge": 100}, "pad_size": {"height": 128, "width": 160}},
    ),
    "maskformer": ("maskformer", {"size": {"shortest_edge": 70, "longest_edge": 120}}),
    "oneformer": ("oneformer", {"size": {"shortest_edge": 70, "longest_edge": 120}}),
    "eomt_padded": ("eomt", {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}),
    "eomt_dinov3_padded": ("eomt_dinov3", {"size": {"shortest_edge": 64, "longest_edge": 64}, "do_pad": True}),
}
IN_PARTS = {"size": {"shortest_edge": 64, "longest_edge": None}, "do_split_image": True}
SIZES = [(75, 131), (90, 50)]


def random_frame(size, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-size[0] // 10), -(-size[1] // 10), 3), dtype=np.uint8)
    return coarse.repeat(10, 0).repeat(10, 1)[: size[0], : size[1]]


def native_outputs(folder, native, frame):
    """What Transformers' own processor and model say about a picture."""
    if native.config.model_type == "oneformer":
        inputs = AutoProcessor.from_pretrained(folder)
        inputs.task_seq_length = native.config.task_seq_len
        inputs = inputs(frame, ["semantic"], return_tensors="pt")
    else:
        inputs = AutoImageProcessor.from_pretrained(folder)(frame, return_tensors="pt")
    patch_offsets = inputs.pop("patch_offsets", None)
    options = {"output_hidden_states": True} if native.config.model_type == "maskformer" else {}
    with torch.no_grad():
        outputs = native(**inputs, **options)
    return inputs, outputs, patch_offsets


def our_outputs(model, processor, frame):
    with torch.no_grad():
        return model(**processor([[frame]], return_tensors="pt"))


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request, tmp_path):
    name, options = CHECKPOINTS[request.param]
    native = save_native(name, tmp_path, **options)
    return tmp_path, native, *load_model(tmp_path)


def test_a_frame_is_prepared_and_scored_as_a_picture_is(checkpoint):
    folder, native, model, processor = checkpoint
    assert type(model) is PerFrameForVideoSemanticSegmentation and not model.training
    for size in SIZES:
        frame = random_frame(size)
        inputs, expected, _ = native_outputs(folder, native, frame)
        ours = processor([[frame]], return_tensors="pt")["pixel_values_videos"]
        assert torch.equal(ours[:, 0], inputs["pixel_values"])
        outputs = our_outputs(model, processor, frame)
        for kind in ("logits", "class_queries_logits", "masks_queries_logits"):
            if kind in expected:
                score = outputs["logits" if kind == "logits" else f"frame_{kind}"][:, 0]
                assert_equal_up_to_rounding(score, expected[kind])


def content_of(name, options, size):
    """Rows and columns of the input that show the picture, where not all of them do: the image processors' rule."""
    if "pad_size" not in options and not options.get("do_pad"):
        return None
    shortest, longest = options["size"]["shortest_edge"], options["size"]["longest_edge"]
    edge = min(shortest, round(longest * min(size) / max(size)))
    other = int(min(longest, edge * max(size) / min(size)))
    divisor = 32 if name == "mask2former" else 1
    edges = (-(-edge // divisor) * divisor, -(-other // divisor) * divisor)
    return edges if size[0] < size[1] else edges[::-1]


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_label_maps_are_the_plain_computation(kind, tmp_path):
    """Scores at the model's own stride, without padding, enlarged once; nothing passes through 384 x 384."""
    name, options = CHECKPOINTS[kind]
    native = save_native(name, tmp_path, **options)
    model, processor = load_model(tmp_path)
    for size in SIZES:
        inputs = native_outputs(tmp_path, native, random_frame(size))[0]
        # Of the model's shapes, but random: a random model is rarely of two minds about a frame.
        ours = our_outputs(model, processor, random_frame(size))
        generator = torch.Generator().manual_seed(size[0])
        ours = type(ours)(**{name: torch.randn(value.shape, generator=generator) for name, value in ours.items()})
        if "logits" in ours:
            scores = ours["logits"][0].double()
        else:
            classes = ours["frame_class_queries_logits"][0].double().softmax(-1)[..., :-1]
            masks = ours["frame_masks_queries_logits"][0].double().sigmoid()
            scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
        rows, columns = inputs["pixel_values"].shape[-2:]
        content = content_of(name, options, size) or (rows, columns)
        if name == "oneformer":  # its cells are of 4 pixels, and the last one may be incomplete
            rows, columns = 4 * scores.shape[-2], 4 * scores.shape[-1]
        # Sampled at the centres of the picture's pixels, by a grid over the padded input.
        y = (torch.arange(size[0], dtype=torch.float64) + 0.5) * content[0] / size[0] / rows * 2 - 1
        x = (torch.arange(size[1], dtype=torch.float64) + 0.5) * content[1] / size[1] / columns * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
        plain = torch.nn.functional.grid_sample(scores, grid, padding_mode="border", align_corners=False)[0]
        if content == (rows, columns):
            whole = torch.nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)[0]
            torch.testing.assert_close(plain, whole)
        (label_maps,) = processor.post_process_semantic_segmentation(ours, [size])
        first, second = plain.topk(2, dim=0).values
        is_clear = first - second > 1e-5
        assert label_maps.shape[1:] == size and is_clear.double().mean() > 0.99
        assert torch.equal(label_maps[0][is_clear].long(), plain.argmax(0)[is_clear])


@pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])
@pytest.mark.parametrize("size", [(75, 131), (150, 70), (64, 64), (60, 190)])
def test_a_frame_in_parts_is_labelled_as_by_the_image_processor(name, size, tmp_path):
    native = save_native(name, tmp_path, **IN_PARTS)
    model, processor = load_model(tmp_path)
    frame = random_frame(size)
    inputs, outputs, patch_offsets = native_outputs(tmp_path, native, frame)
    num_parts = -(-round(64 * max(size) / min(size)) // 64)
    assert len(inputs["pixel_values"]) == num_parts
    outputs.patch_offsets = patch_offsets
    square = {"shortest_edge": 64, "longest_edge": 64}
    image_processor = AutoImageProcessor.from_pretrained(tmp_path)
    masks = torch.nn.functional.interpolate(outputs["masks_queries_logits"], (64, 64), mode="bilinear")
    classes = outputs["class_queries_logits"].softmax(-1)[..., :-1]
    parts = torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid())
    (expected,) = image_processor.merge_image_patches(parts, patch_offsets, [size], {**square, "longest_edge": None})
    ours = our_outputs(model, processor, frame)
    if num_parts > 1:
        assert ours.logits.shape[-2:] == processor.resized_size(*size)
        enlarged = torch.nn.functional.interpolate(ours.logits[:, 0], size, mode="bilinear", align_corners=False)[0]
        assert_equal_up_to_rounding(enlarged, expected)
        (label_maps,) = processor.post_process_semantic_segmentation(ours, [size])
        assert (label_maps[0] != expected.argmax(0)).float().mean() < 1e-3
        assert label_maps.unique().numel() > 1
    else:  # one square is not cut, and keeps its queries
        torch.testing.assert_close(ours.frame_masks_queries_logits[0], outputs["masks_queries_logits"])


def test_eomt_without_a_rule_for_oblong_pictures_sees_them_stretched(tmp_path):
    """Its own processor leaves them oblong, which the model cannot take."""
    save_native("eomt", tmp_path)
    model, processor = load_model(tmp_path)
    assert processor([[random_frame((75, 131))]], return_tensors="pt")["pixel_values_videos"].shape[-2:] == (64, 64)
    ((_, label_map),) = segment_frames(model, processor, [random_frame((75, 131))])
    assert label_map.shape == (75, 131)


def test_frames_are_labelled_whole_where_pictures_are_cropped(tmp_path):
    save_native("mobilevit", tmp_path, size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    model, processor = load_model(tmp_path)
    assert processor.resized_size(75, 131) == (64, 111)
    ((_, label_map),) = segment_frames(model, processor, [random_frame((75, 131))])
    assert label_map.shape == (75, 131)


def test_the_task_is_read_from_the_tokenizer_and_kept(tmp_path):
    save_native("oneformer", tmp_path / "native", size={"shortest_edge": 64, "longest_edge": 96})
    model, processor = load_model(tmp_path / "native")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "native").tokenizer
    tokens = tokenizer("the task is semantic")["input_ids"]
    assert model.config.task_inputs == tokens + [0] * (24 - len(tokens))
    model.save_pretrained(tmp_path / "video")
    processor.save_pretrained(tmp_path / "video")
    again, _ = load_model(tmp_path / "video")
    assert again.config.task_inputs == model.config.task_inputs


def test_oneformer_saved_in_training_labels_frames_without_texts(tmp_path):
    native = save_native("oneformer", tmp_path, size={"shortest_edge": 64, "longest_edge": 96})
    native.config.is_training = True
    type(native)(native.config).save_pretrained(tmp_path)  # with its text encoder
    model, processor = load_model(tmp_path)
    ((_, label_map),) = segment_frames(model, processor, [random_frame((75, 131))])
    assert label_map.shape == (75, 131)


@pytest.mark.parametrize("kind", ["segformer", "mask2former_padded", "mobilevit", "eomt_padded", "oneformer"])
def test_saved_as_a_video_model_it_is_the_same(kind, tmp_path):
    name, options = CHECKPOINTS[kind]
    save_native(name, tmp_path / "native", **options)
    model, processor = load_model(tmp_path / "native")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "video")
    again, processor_again = load_model(tmp_path / "video")
    assert type(processor_again) is type(processor) is type(AutoVideoProcessor.from_pretrained(tmp_path / "video"))
    assert processor_again.to_dict() == processor.to_dict()
    frame = random_frame((75, 131))
    ((_, expected),) = segment_frames(model, processor, [frame])
    ((_, label_map),) = segment_frames(again, processor_again, [frame])
    assert np.array_equal(label_map, expected)


def test_labels_follow_their_frames(tmp_path):
    """A map that is the frame's own red channel still is, after resizing and padding."""
    name, options = CHECKPOINTS["mask2former_padded"]
    save_native(name, tmp_path, **options, resample=0, do_rescale=False, do_normalize=False)
    _, processor = load_model(tmp_path)
    frame = random_frame((64, 100)) // 2 + 1
    batch = processor([[frame]], [[frame[..., 0]]], return_tensors="pt")
    red = batch["pixel_values_videos"][0, 0, 0].long()
    assert torch.equal(batch["labels"][0, 0], torch.where(red == 0, 255, red - 1))
    with pytest.raises(ValueError, match=r"must be set in `image_processor`\. Got size for a call"):
        processor([[frame]], size={"height": 64, "width": 64})


def test_native_auto_classes_return_what_they_always_did(tmp_path):
    native = save_native("segformer", tmp_path / "segformer", size={"height": 64, "width": 64})
    video = save_videomt(tmp_path / "videomt")
    assert type(AutoModel.from_pretrained(tmp_path / "segformer")) is type(native.base_model)
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "segformer")) is type(native)
    assert type(AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "videomt")) is type(video)
    assert type(AutoVideoProcessor.from_pretrained(tmp_path / "videomt")).__name__ == "VideomtVideoProcessor"


def test_every_way_to_the_auto_class_leads_to_the_same_model(tmp_path):
    native = save_native("segformer", tmp_path)
    by_path = AutoModelForVideoSemanticSegmentation.from_pretrained(tmp_path)
    by_config = AutoModelForVideoSemanticSegmentation.from_pretrained(tmp_path, config=native.config)
    for name, value in native.state_dict().items():
        assert torch.equal(by_path.state_dict()[f"segmenter.{name}"], value)
        assert torch.equal(by_config.state_dict()[f"segmenter.{name}"], value)
    assert by_path.name_or_path == by_config.name_or_path == str(tmp_path)
    new = AutoModelForVideoSemanticSegmentation.from_config(native.config)
    assert new.state_dict().keys() == by_path.state_dict().keys()
    same = AutoModelForVideoSemanticSegmentation.from_config(PerFrameConfig(segmenter_config=segformer()))
    assert type(same) is type(new)


def classifier(folder):
    SegformerForImageClassification(segformer()).save_pretrained(folder)
    SegformerImageProcessor().save_pretrained(folder)


def prompted_segmenter(folder):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**small, "output_channels": 8, "image_size": 32, "patch_size": 16, "mlp_dim": 8}
    decoder = {**small, "hidden_size": 8, "mlp_dim": 8, "iou_head_hidden_dim": 8}
    prompts = {"hidden_size": 8, "image_size": 32, "image_embedding_size": 2}
    SamModel(
        SamConfig(vision_config=vision, mask_decoder_config=decoder, prompt_encoder_config=prompts)
    ).save_pretrained(folder)


def without_processor(folder):
    save_native("segformer", folder)
    (folder / "preprocessor_config.json").unlink()


def without_tokenizer(folder):
    save_native("oneformer", folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (classifier, "must fill the whole model. Got none for .* the first `decode_head"),
        (prompted_segmenter, "must describe a model that segments single images .* Got 'sam'"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "unheard_of"}'), "Got 'unheard_of'"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no config.json that names a `model_type`"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: None, "no config.json that names a `model_type`"),
        (without_processor, "cannot be loaded"),
        (without_tokenizer, "cannot be loaded"),
    ],
    ids=["classifier", "sam", "unknown", "no_type", "broken", "empty", "no_processor", "no_tokenizer"],
)
def test_models_without_segmentation_are_rejected_in_one_sentence(make, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load_model(tmp_path, argument="--model")
    assert "\n" not in str(error.value)


def test_model_without_a_head_is_rejected_except_as_a_start_of_training(tmp_path):
    classifier(tmp_path)
    with pytest.raises(ValueError, match=r"must fill the whole model\. Got none for `decode_head\."):
        AutoModelForVideoSemanticSegmentation.from_pretrained(tmp_path)
    _, loading = AutoModelForVideoSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert loading["missing_keys"]
    PerFrameForVideoSemanticSegmentation.from_pretrained(tmp_path)


def test_the_processor_can_be_loaded_for_a_model_that_is_there(tmp_path):
    save_native("segformer", tmp_path, size={"height": 64, "width": 96})
    model = load_pretrained(AutoModelForVideoSemanticSegmentation, "model", tmp_path)
    assert load_processor(tmp_path, model).resized_size(10, 20) == (64, 96)

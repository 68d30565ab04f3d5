# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerForImageClassification, SegformerImageProcessor, VideomtVideoProcessor, pipeline

from tiny_segmenters import save_native, save_videomt, segformer
from transformers_themask.inference.loading import load_model
from transformers_themask.inference.segment import segment_frames
from transformers_themask.videos.source import IncompleteVideoError
from transformers_themask.videos.video_reader import VideoReader


@pytest.fixture(scope="module")
def pipe(model_dir):
    return pipeline("video-semantic-segmentation", model=str(model_dir), device="cpu")


@pytest.fixture(scope="module")
def expected(segmenter, frames):
    batch = segmenter.processor([list(frames[:2])], return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(pixel_values_videos=batch["pixel_values_videos"])
    (maps,) = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[frames.shape[1:3]])
    return maps.numpy()


@pytest.mark.parametrize(
    "as_input",
    [
        lambda clip: clip,
        list,
        lambda clip: [Image.fromarray(frame) for frame in clip],
        lambda clip: torch.from_numpy(clip).permute(0, 3, 1, 2),
        lambda clip: list(torch.from_numpy(clip).permute(0, 3, 1, 2)),
    ],
    ids=["array", "list_of_arrays", "list_of_images", "tensor", "list_of_tensors"],
)
def test_every_kind_of_video_in_memory_equals_a_direct_call_of_the_model(pipe, frames, expected, as_input):
    result = pipe(as_input(frames[:2]))
    assert result["segmentation"].dtype == np.uint8
    assert np.array_equal(result["segmentation"], expected)
    assert result["frame_rate"] is None


def test_labels_name_the_classes_that_appear(pipe, frames, segmenter):
    result = pipe(frames)
    appearing = set(result["segmentation"].ravel().tolist())
    assert result["labels"] == {index: segmenter.model.config.id2label[index] for index in sorted(appearing)}


def test_a_video_file_is_segmented_whole_with_its_frame_rate(pipe, segmenter, video_path):
    result = pipe(str(video_path))
    expected = [
        label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, VideoReader(video_path))
    ]
    assert np.array_equal(result["segmentation"], expected)
    assert result["frame_rate"] == 10.0


def test_a_folder_of_frames_is_a_video(pipe, frames, frame_folder):
    assert np.array_equal(pipe(str(frame_folder))["segmentation"], pipe(frames)["segmentation"])


def test_options_are_those_of_segment_frames_at_construction_and_call(pipe, model_dir, segmenter, frames):
    maps = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, frames, 3, 2)]
    assert np.array_equal(pipe(frames, num_frames=3, frame_stride=2)["segmentation"], maps)
    strided = pipeline("video-semantic-segmentation", model=str(model_dir), device="cpu", num_frames=3, frame_stride=2)
    assert np.array_equal(strided(frames)["segmentation"], maps)


def test_several_videos_give_a_list_and_a_generator_a_stream(pipe, video_path, frames):
    one_by_one = [pipe(str(video_path)), pipe(frames[:3])]
    for results in (pipe([str(video_path), frames[:3]]), list(pipe(video for video in [video_path, frames[:3]]))):
        for result, single in zip(results, one_by_one, strict=True):
            assert np.array_equal(result["segmentation"], single["segmentation"])
            assert result["labels"] == single["labels"] and result["frame_rate"] == single["frame_rate"]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), r"\(num_frames, height, width, 3\). Got \(2, 3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"\(num_frames, 3, height, width\). Got \(2, 8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "at least one frame"),
        ([], "`inputs` must be a video or a list of videos. Got an empty list"),
        ({"a": 1}, "a path, an array, a tensor or a list of frames. Got a dict"),
        (np.zeros((2, 8, 8, 3), dtype=np.float32), r"a uint8 array .* Got float32 of shape \(8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8), r"a uint8 array .* Got float32 of shape \(8, 8, 3\)"),
        ([np.zeros((8, 8, 4), dtype=np.uint8)], r"a uint8 array .* Got uint8 of shape \(8, 8, 4\)"),
        ([[1, 2]], "A frame must be a PIL image, a uint8 array .* Got int"),
        (7, "a path, an array, a tensor or a list of frames. Got a int"),
    ],
    ids=[
        "channels_first_array",
        "channels_last_tensor",
        "no_frames",
        "empty_list",
        "dict",
        "float_array",
        "float_tensor",
        "four_channels",
        "numbers",
        "number",
    ],
)
def test_invalid_videos_are_named_in_the_error(pipe, video, message):
    with pytest.raises(ValueError, match=message) as error:
        pipe(video)
    assert "\n" not in str(error.value)


def test_a_saved_pipeline_loads_without_trust_in_remote_code(pipe, frames, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "pipeline.py").exists()
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    loaded = pipeline("video-semantic-segmentation", model=str(tmp_path), device="cpu")
    assert type(loaded) is type(pipe)
    assert np.array_equal(loaded(frames)["segmentation"], pipe(frames)["segmentation"])


def test_videos_are_not_batched(pipe, frames):
    with pytest.raises(ValueError, match=r"`batch_size` must be 1, .* Got 2."):
        pipe([frames, frames], batch_size=2)


# ---- frame by frame ----


def test_a_stream_gives_the_frames_of_the_whole_one_by_one(pipe, frames, video_path):
    for video, same in ((frames, frames), (str(video_path), str(video_path)), (iter(frames), frames)):
        results, whole = list(pipe(video, stream=True)), pipe(same)
        assert [result["frame_index"] for result in results] == list(range(11))
        assert np.array_equal([result["segmentation"] for result in results], whole["segmentation"])
        assert {index: name for result in results for index, name in result["labels"].items()} == whole["labels"]
        for result in results:
            assert list(result["labels"]) == np.unique(result["segmentation"]).tolist()


def test_a_stream_reads_no_further_than_it_must(pipe, frames):
    taken = []

    def camera():
        for index in itertools.count():
            taken.append(index)
            yield frames[index % 11]

    stream = pipe(camera(), stream=True, mode="sliding")
    assert not taken
    assert [next(stream)["frame_index"] for _ in range(30)] == list(range(30)) == taken
    two_frame_clips = pipe(camera(), stream=True)  # contiguous
    assert next(two_frame_clips)["frame_index"] == 0 and taken[30:] == [0, 1]


@pytest.mark.parametrize("mode", ["contiguous", "interleaved", "sliding"])
def test_the_mode_is_that_of_a_session_at_construction_and_call(pipe, segmenter, frames, mode):
    maps = [label_map for _, label_map in segment_frames(segmenter.model, segmenter.processor, frames, mode=mode)]
    assert np.array_equal(pipe(frames, mode=mode)["segmentation"], maps)
    fixed = pipeline(
        "video-semantic-segmentation",
        model=segmenter.model,
        video_processor=segmenter.processor,
        device="cpu",
        mode=mode,
    )
    assert np.array_equal(fixed(frames)["segmentation"], maps)
    assert np.array_equal([result["segmentation"] for result in fixed(frames, stream=True)], maps)
    with pytest.raises(ValueError, match=r"`mode` must be one that .* has: .* Got 'recurrent'"):
        pipe(frames, mode="recurrent")


def test_a_damaged_video_is_an_error_after_its_readable_frames(pipe, frames, tmp_path):
    path = tmp_path / "cut.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 50, 36, "yuv420p"
        for frame in np.concatenate([frames] * 4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(IncompleteVideoError) as error:
        pipe(str(path))
    assert "\n" not in str(error.value)
    results = []
    with pytest.raises(IncompleteVideoError):
        results.extend(pipe(str(path), stream=True))
    assert [result["frame_index"] for result in results] == list(range(len(results))) and 5 < len(results) < 44


# ---- checkpoints of Transformers ----


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("segformer", {"size": {"height": 64, "width": 96}}),
        ("mask2former", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
        ("oneformer", {"size": {"shortest_edge": 64, "longest_edge": 96}}),
    ],
)
def test_a_checkpoint_of_an_image_model_labels_videos(frames, tmp_path, name, options):
    save_native(name, tmp_path, **options)
    pipe = pipeline("video-semantic-segmentation", model=str(tmp_path), device="cpu")
    model, processor = load_model(tmp_path)
    result = pipe(frames)
    assert result["segmentation"].shape == frames.shape[:3]
    expected = [label_map for _, label_map in segment_frames(model, processor, frames)]
    assert np.array_equal(result["segmentation"], expected)
    pipe.save_pretrained(tmp_path / "video")
    again = pipeline("video-semantic-segmentation", model=str(tmp_path / "video"), device="cpu")
    assert np.array_equal(again(frames)["segmentation"], expected)


@pytest.mark.parametrize("shape", [(36, 50), (50, 36)])
def test_videomt_labels_frames_at_their_own_size_and_orientation(tmp_path, shape):
    native = save_videomt(tmp_path)
    pipe = pipeline("video-semantic-segmentation", model=str(tmp_path), device="cpu")
    assert pipe.model.stream_modes == ("recurrent",)
    video = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), dtype=np.uint8)
    result = pipe(video)["segmentation"]
    assert result.shape == (4, *shape)
    processor = VideomtVideoProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        outputs = native(**processor(video, return_tensors="pt"))
    expected = torch.stack(processor.post_process_semantic_segmentation(outputs, [shape] * 4))
    assert (torch.from_numpy(result) != expected).float().mean() < 1e-3  # ties in float32
    chunked = [part["segmentation"] for part in pipe(iter(video), stream=True)]
    assert np.array_equal(chunked, result)


def test_pipeline_rejects_models_that_label_no_videos_in_one_sentence(tmp_path):
    SegformerForImageClassification(segformer()).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`model` must be a model that labels videos, .* Got a Segformer") as error:
        pipeline("video-semantic-segmentation", model=str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)

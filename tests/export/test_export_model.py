# SPDX-License-Identifier: Apache-2.0
"""Exported graphs, opened by `torch.export` and by onnxruntime, give the scores of the model they were made of."""

import contextlib
import io
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ResNetConfig

from families import SMALL_WINDOWS, cffm_model, mpvss_model
from themask_command import main
from tiny import tiny_model
from tiny_segmenters import opinionated, per_frame_model, videomt
from transformers_themask import AutoModelForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.export.export_model import check_difference, export_model

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "export.md"
SIZES = [(64, 96), (96, 64)]
NAMES = dict(enumerate("abcdef"))
# Enough for every frame that the state keeps to have been replaced.
STREAM_LENGTH = 4


def slow(*families):
    return [pytest.param(family, marks=pytest.mark.slow) for family in families]


def tiny_resnet():
    """A backbone that is traced faster than the MiT, which the image model below has."""
    stages = [f"stage{index}" for index in range(1, 5)]
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    )


def random_frames(batch_size, num_frames, size):
    return torch.randn(batch_size, num_frames, 3, *size, generator=torch.Generator().manual_seed(num_frames))


def scores_of(model, frames):
    """The scores `(batch, num_frames, num_labels, height, width)` that the processor makes label maps of."""
    with torch.no_grad():
        outputs = model(pixel_values_videos=frames)
    batch_size, num_frames = frames.shape[:2]
    return torch.stack(
        [torch.stack([outputs.frame_scores(b, t) for t in range(num_frames)]) for b in range(batch_size)]
    )


def opened(path):
    """An exported file as a function from named arrays to named arrays, with what its user has at hand."""
    if path.suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))
    program = torch.export.load(path).module()

    def run(inputs):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        frames = tensors.pop("pixel_values_videos")
        with torch.no_grad():
            outputs = program(pixel_values_videos=frames, **({"state": tensors} if tensors else {}))
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def shape_before_the_first_frame(value, batch_size, height, width):
    """The shape of a state's input, by the manifest's rules."""
    known = {"batch": batch_size, "frames_kept": 0, "height": height, "width": width}
    shape = []
    for length in value["shape"]:
        measure, _, divisor = str(length).partition("/")
        factors = [known[factor] if factor in known else int(factor) for factor in measure.split("*")]
        shape.append(math.prod(factors) // int(divisor or 1))
    return shape


def streamed_scores(run, graph, frames):
    """The scores of a graph for each frame of a video, with its state passed on."""
    batch_size, size = len(frames), frames.shape[-2:]
    state = {
        value["name"]: np.zeros(shape_before_the_first_frame(value, batch_size, *size), dtype=value["dtype"])
        for value in graph["inputs"][1:]
    }
    scores = []
    for frame in frames.split(1, dim=1):
        outputs = run({"pixel_values_videos": frame.numpy(), **state})
        scores.append(outputs.pop("segmentation_scores"))
        state = {name.replace("state_out", "state_in"): value for name, value in outputs.items()}
    return np.concatenate(scores, axis=1)


def exported(model, folder, **options):
    processor = THEMaskVideoProcessor(size={"shortest_edge": 64})
    differences = export_model(model, processor, folder, formats=("torch", "onnx"), **options)
    assert all(difference < 1e-3 for difference in differences.values())
    return SimpleNamespace(model=model, folder=folder, manifest=json.loads((folder / "manifest.json").read_text()))


@pytest.fixture(scope="session")
def two_frames(tmp_path_factory):
    """THE-Mask with its temporal decoder: one graph for clips, one with a state, both for all sizes."""
    pytest.importorskip("onnxscript")
    model = opinionated(tiny_model(num_frames=2, decoder_layers=2, backbone_config=tiny_resnet()))
    return exported(model, tmp_path_factory.mktemp("two_frames") / "exported")


@pytest.fixture(scope="session")
def one_frame(tmp_path_factory):
    """The one-frame THE-Mask through the command line, with a graph for each of two sizes."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("one_frame")
    model = opinionated(tiny_model(num_frames=1, decoder_layers=2, backbone_config=tiny_resnet(), id2label=NAMES))
    model.save_pretrained(folder / "model")
    THEMaskVideoProcessor(size={"shortest_edge": 64}).save_pretrained(folder / "model")
    sizes = [word for size in SIZES for word in ("--size", *map(str, size))]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["export", str(folder / "model"), str(folder / "out"), "--format", "onnx", "torch", *sizes])
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return SimpleNamespace(
        model=model, folder=folder / "out", manifest=manifest, code=code, printed=printed.getvalue()
    )


@pytest.fixture(scope="session")
def per_frame(tmp_path_factory):
    """SegFormer on every frame, whose scores are logits of pixels."""
    pytest.importorskip("onnxscript")
    return exported(opinionated(per_frame_model("segformer")), tmp_path_factory.mktemp("per_frame") / "out")


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory):
    """VidEoMT, which passes its queries on."""
    pytest.importorskip("onnxscript")
    model = opinionated(AutoModelForVideoSemanticSegmentation.from_config(videomt()))
    return exported(model, tmp_path_factory.mktemp("recurrent") / "out")


@pytest.fixture(scope="session")
def cffm(tmp_path_factory):
    """CFFM, whose state has a place for every frame that it will hold, and counts them."""
    pytest.importorskip("onnxscript")
    model = opinionated(cffm_model(mining_layers=1, backbone_config=tiny_resnet()))
    return exported(model, tmp_path_factory.mktemp("cffm") / "out")


@pytest.fixture(scope="session")
def mpvss(tmp_path_factory):
    """MPVSS, which does not do the same in every step."""
    pytest.importorskip("onnxscript")
    model = opinionated(mpvss_model(segmenter={"backbone_config": tiny_resnet()}, key_frame_interval=3))
    return exported(model, tmp_path_factory.mktemp("mpvss") / "out", sizes=SIZES[:1])


def graph_for(export, mode, size=None):
    (graph,) = [
        graph
        for graph in export.manifest["graphs"]
        if mode in graph["modes"] and (size is None or (graph["height"], graph["width"]) in ((None, None), size))
    ]
    return graph


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("family", ["two_frames", *slow("one_frame", "per_frame")])
def test_clip_graph_equals_the_model_at_any_length_and_size(family, suffix, request):
    export = request.getfixturevalue(family)
    for size in SIZES:
        graph = graph_for(export, "contiguous", size)
        (file,) = [name for name in graph["files"] if name.endswith(suffix)]
        run = opened(export.folder / file)
        for batch_size, num_frames in ((1, 1), (2, 1), (2, 3)):
            frames = random_frames(batch_size, num_frames, size)
            scores = run({"pixel_values_videos": frames.numpy()})["segmentation_scores"]
            np.testing.assert_allclose(scores, scores_of(export.model, frames), atol=1e-3, rtol=0)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("family", ["two_frames", *slow("one_frame", "per_frame")])
def test_sliding_graph_equals_the_model_on_windows(family, suffix, request):
    export = request.getfixturevalue(family)
    num_frames = export.manifest["num_frames"]
    for batch_size, size in zip((1, 2), SIZES, strict=True):
        graph = graph_for(export, "sliding", size)
        (file,) = [name for name in graph["files"] if name.endswith(suffix)]
        frames = random_frames(batch_size, STREAM_LENGTH, size)
        scores = streamed_scores(opened(export.folder / file), graph, frames)
        for index in range(STREAM_LENGTH):
            window = frames[:, max(0, index + 1 - num_frames) : index + 1]
            expected = scores_of(export.model, window)[:, -1]
            np.testing.assert_allclose(scores[:, index], expected, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_recurrent_graph_equals_the_model_on_the_whole_video(recurrent, suffix):
    graph = graph_for(recurrent, "recurrent")
    (file,) = [name for name in graph["files"] if name.endswith(suffix)]
    for batch_size in (1, 2):
        frames = random_frames(batch_size, STREAM_LENGTH, (graph["height"], graph["width"]))
        scores = streamed_scores(opened(recurrent.folder / file), graph, frames)
        np.testing.assert_allclose(scores, scores_of(recurrent.model, frames), atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@torch.no_grad()
def test_recurrent_graph_of_cffm_equals_the_models_steps(cffm, suffix):
    """At two sizes of which the windows leave different rests; up to a frame whose references have all moved on."""
    graph = graph_for(cffm, "recurrent")
    (file,) = [name for name in graph["files"] if name.endswith(suffix)]
    for batch_size, size in zip((2, 1), [*SIZES[:1], (128, 224)], strict=True):
        frames = random_frames(batch_size, cffm.model.config.reach + 3, size)
        scores = streamed_scores(opened(cffm.folder / file), graph, frames)
        state = cffm.model.initial_state()
        for index, frame in enumerate(frames.split(1, dim=1)):
            outputs, state = cffm.model.streaming_step(frame, state)
            np.testing.assert_allclose(scores[:, [index]], outputs.scores(), atol=1e-3, rtol=0)


@pytest.mark.slow
def test_cffm_with_a_repeated_first_frame_exports_at_a_fixed_size(tmp_path):
    """Its first frames are answered from references too; every file is compared with the model from there on."""
    fields = {**SMALL_WINDOWS, "first_frames": "repeated", "backbone_config": tiny_resnet(), "mining_layers": 1}
    model = opinionated(cffm_model(**fields))
    differences = export_model(model, THEMaskVideoProcessor(), tmp_path / "out", ["torch"], [(64, 96)])
    assert [path.name for path in differences] == ["recurrent_64x96.pt2"]
    assert max(differences.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_key_frames_and_later_frames_have_separate_graphs(mpvss, suffix, batch_size):
    """Whoever runs them takes the first one for a video's first frame and every third one."""
    runs, names = {}, {}
    for graph in mpvss.manifest["graphs"]:
        (file,) = [name for name in graph["files"] if name.endswith(suffix)]
        runs[graph["step"]] = opened(mpvss.folder / file)
        names[graph["step"]] = [value["name"] for value in graph["inputs"]]
    assert runs.keys() == {"key_frame", "later_frame"} and names["key_frame"] == ["pixel_values_videos"]
    frames = random_frames(batch_size, 7, SIZES[0])
    expected, state = scores_of(mpvss.model, frames), {}
    for index, frame in enumerate(frames.split(1, dim=1)):
        step = "later_frame" if index % 3 else "key_frame"
        inputs = {"pixel_values_videos": frame.numpy(), **state}
        outputs = runs[step]({name: inputs[name] for name in names[step]})
        np.testing.assert_allclose(outputs.pop("segmentation_scores")[:, 0], expected[:, index], atol=1e-3, rtol=0)
        state = {name.replace("state_out", "state_in"): value for name, value in outputs.items()}
        assert (state["state_in_num_since"] == index % 3 + 1).all()


def test_key_frames_chosen_by_content_are_rejected(tmp_path):
    model = mpvss_model(key_frame_threshold=0.5)
    with pytest.raises(ValueError, match="`key_frame_threshold` must be None to export a step"):
        export_model(model, THEMaskVideoProcessor(), tmp_path / "out", ["torch"], SIZES[:1])


@pytest.mark.parametrize("family", ["two_frames", *slow("cffm")])
def test_the_manifest_names_what_the_onnx_graph_takes_and_returns(family, request):
    onnxruntime = pytest.importorskip("onnxruntime")
    export = request.getfixturevalue(family)
    dtypes = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    for graph in export.manifest["graphs"]:
        (file,) = [name for name in graph["files"] if name.endswith(".onnx")]
        session = onnxruntime.InferenceSession(export.folder / file)
        for values, described in ((session.get_inputs(), "inputs"), (session.get_outputs(), "outputs")):
            assert [{"name": x.name, "dtype": dtypes[x.type], "shape": x.shape} for x in values] == graph[described]


def test_graph_contains_no_path_of_the_exporting_machine(two_frames):
    for path in two_frames.folder.glob("*.onnx"):
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.slow
def test_the_manifest_says_what_becomes_of_frames_and_what_classes_are_called(one_frame):
    preprocessing = one_frame.manifest["preprocessing"]
    assert preprocessing["size"] == {"shortest_edge": 64}
    assert preprocessing["image_mean"] == list(THEMaskVideoProcessor().image_mean)
    assert preprocessing["image_std"] == list(THEMaskVideoProcessor().image_std)
    assert one_frame.manifest["class_names"] == list(NAMES.values())


@pytest.mark.slow
def test_the_command_reports_every_file(one_frame):
    assert one_frame.code == 0
    files = [path.name for path in one_frame.folder.iterdir()]
    assert sorted(files) == ["clip_64x96.onnx", "clip_64x96.pt2", "clip_96x64.onnx", "clip_96x64.pt2", "manifest.json"]
    assert all(name in one_frame.printed for name in files)


def test_documented_example_labels_a_stream(two_frames, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(two_frames.folder.parent)
    (example,) = re.findall(r"```python\n(# A stream.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    namespace = {}
    exec(example, namespace)
    pictures = np.random.default_rng(0).integers(0, 256, (STREAM_LENGTH, 64, 96, 3), dtype=np.uint8)
    label_maps = list(namespace["label_stream"](pictures, height=64, width=96))
    frames = THEMaskVideoProcessor(do_resize=False)([list(pictures)], return_tensors="pt")["pixel_values_videos"]
    for index, label_map in enumerate(label_maps):
        scores = scores_of(two_frames.model, frames[:, max(0, index - 1) : index + 1])[0, -1]
        best, second = scores.topk(2, dim=0).values
        decided = best - second > 1e-3
        assert decided.float().mean() > 0.9
        assert torch.equal(torch.from_numpy(label_map)[decided], scores.argmax(0)[decided])
    assert len(label_maps) == STREAM_LENGTH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": ["recurrent"]}, "`mode` must be one that can be exported of .*: contiguous, sliding. Got 'recurr"),
        ({"num_frames": 0}, "`num_frames` must be at least 1. Got 0"),
        ({"sizes": [(64, -32)]}, "`size` must be a positive height and width. Got 64 -32"),
        ({"sizes": [(64, 90)]}, "height and width multiples of 32"),
        ({"formats": ["tflite"]}, "`format` must be torch or onnx. Got 'tflite'"),
    ],
)
def test_invalid_export_options_are_rejected_with_one_line(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(tiny_model(num_frames=2), THEMaskVideoProcessor(), tmp_path / "out", **options)


def test_exporter_error_is_reported_with_model_and_reason(tmp_path):
    """EoMT decides by the values of a buffer what to compute."""
    with pytest.raises(ValueError, match=r"Got clip_64x64, which torch\.export rejects: .*data-dependent"):
        export_model(per_frame_model("eomt"), THEMaskVideoProcessor(), tmp_path / "out", formats=["torch"])


def test_failed_export_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_themask.export.export_model.largest_difference", lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"must differ .* Nothing was exported"):
        export_model(
            tiny_model(), THEMaskVideoProcessor(), tmp_path / "out", ["torch"], [(64, 64)], modes=["contiguous"]
        )
    assert not list(tmp_path.iterdir())


def test_folder_with_content_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="`output_dir` must be a new or empty folder"):
        export_model(tiny_model(), THEMaskVideoProcessor(), tmp_path)
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_onnx_export_names_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"without the packages onnxscript.*transformers-themask\[export\]"):
        export_model(tiny_model(), THEMaskVideoProcessor(), tmp_path / "out")


@pytest.mark.parametrize("difference", [0.002, float("nan")])
def test_graph_with_other_scores_is_rejected(difference):
    with pytest.raises(ValueError, match=r"must differ from the model's by at most 0\.001"):
        check_difference("clip.onnx", difference)

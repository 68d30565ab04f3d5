# SPDX-License-Identifier: Apache-2.0
"""Saving, loading and sharing: every way back gives the same numbers, also where the package is not installed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoVideoProcessor, SwinConfig, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

import transformers_themask
from hidden_package import load_without_the_package, run_python
from tiny import random_clips, tiny_model
from transformers_themask import (
    AutoModelForVideoSemanticSegmentation,
    MiTBackbone,
    MiTConfig,
    THEMaskConfig,
    THEMaskForVideoSemanticSegmentation,
    THEMaskVideoProcessor,
)

LOGITS = (
    "class_queries_logits",
    "masks_queries_logits",
    "frame_class_queries_logits",
    "frame_masks_queries_logits",
)
BACKBONES = {
    "mit": {},
    "swin": {
        "backbone_config": SwinConfig(
            embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 4), window_size=4, image_size=64
        )
    },
}
SOURCES = {
    "step_context.py",
    "protocols.py",
    "outputs.py",
    "modeling_query_segmenter.py",
    "masked_attention.py",
    "loss_settings.py",
    "label_counts.py",
    "configuration_query_segmenter.py",
    "backbones.py",
    "configuration_themask.py",
    "decoder_themask.py",
    "deformable_attention.py",
    "frame_arrays.py",
    "inputs.py",
    "query_loss.py",
    "matching.py",
    "mit.py",
    "modeling_themask.py",
    "pixel_decoder.py",
    "point_sampling.py",
    "pretrained_model.py",
    "scores_to_labels.py",
    "streaming.py",
    "video_processing.py",
    "video_processing_themask.py",
}


def tiny_processor():
    return THEMaskVideoProcessor(size={"shortest_edge": 60, "longest_edge": 90}, fit="pad", ignore_index=200)


def logits_of(model):
    with torch.no_grad():
        outputs = model.eval()(pixel_values_videos=random_clips()[0])
    return {name: outputs[name] for name in LOGITS}


def assert_same_logits(ours, expected):
    for name in LOGITS:
        assert torch.equal(ours[name], expected[name]), name


@pytest.fixture(scope="module", params=list(BACKBONES))
def saved(request, tmp_path_factory):
    """A folder with a model and its processor, and the logits the model gives."""
    folder = tmp_path_factory.mktemp(request.param)
    id2label = {0: "road", 1: "car", 2: "sky", 3: "tree", 4: "person", 5: "sign"}
    model = tiny_model(num_frames=2, id2label=id2label, num_labels=6, **BACKBONES[request.param])
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder, logits_of(model)


@pytest.mark.parametrize(
    "auto_class", [THEMaskForVideoSemanticSegmentation, AutoModelForVideoSemanticSegmentation, AutoModel]
)
def test_every_auto_class_returns_the_same_model(saved, auto_class):
    folder, expected = saved
    model = auto_class.from_pretrained(folder)
    assert type(model) is THEMaskForVideoSemanticSegmentation
    assert model.config.id2label[1] == "car"
    assert_same_logits(logits_of(model), expected)


def test_configuration_survives_a_round_trip(saved):
    folder, _ = saved
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is THEMaskConfig and config.num_labels == 6 and config.backbone is None
    again = THEMaskConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert type(again.backbone_config) is type(config.backbone_config)


def test_processor_survives_a_round_trip(saved):
    folder, _ = saved
    frames = np.random.default_rng(0).integers(0, 256, (2, 75, 100, 3), dtype=np.uint8)
    maps = np.random.default_rng(1).integers(0, 7, (2, 75, 100), dtype=np.uint8)
    loaded = AutoVideoProcessor.from_pretrained(folder)
    assert type(loaded) is THEMaskVideoProcessor
    ours, expected = (p(frames, maps, return_tensors="pt") for p in (loaded, tiny_processor()))
    assert torch.equal(ours["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(ours["labels"], expected["labels"])
    assert (ours["labels"] == 200).any()


def test_pipeline_labels_as_model_and_processor_do(saved):
    folder, _ = saved
    frames = np.random.default_rng(0).integers(0, 256, (2, 75, 100, 3), dtype=np.uint8)
    result = pipeline("video-semantic-segmentation", model=str(folder))(frames)
    model, processor = AutoModel.from_pretrained(folder), AutoVideoProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(frames, return_tensors="pt"))
    [expected] = processor.post_process_semantic_segmentation(outputs, [(75, 100)])
    assert np.array_equal(result["segmentation"], expected.numpy())
    assert result["labels"] == {index: model.config.id2label[index] for index in expected.unique().tolist()}


def test_sharded_checkpoints_load_alike(saved, tmp_path):
    folder, expected = saved
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_logits(logits_of(AutoModel.from_pretrained(tmp_path)), expected)


def test_checkpoint_holds_every_parameter_once(saved):
    """Legacy backbone names split or rename parameters but neither add nor drop a number."""
    folder, _ = saved
    model = AutoModel.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    buffers = {key for key in model.state_dict() if key not in dict(model.named_parameters(remove_duplicate=False))}
    assert sum(value.numel() for value in stored.values()) == sum(
        value.numel() for value in model.state_dict().values()
    )
    assert not [key for key in stored if "criterion" in key or "empty_weight" in key]
    assert all("relative_position_index" in key for key in buffers)  # Swin's own constant


def test_unknown_checkpoint_entries_are_reported(saved, tmp_path):
    folder, _ = saved
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file({**stored, "model.stranger": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    _, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"model.stranger"} and not report["missing_keys"]


def test_backbone_alone_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    config = MiTConfig(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 3, 4))
    backbone = AutoBackbone.from_config(config).eval()
    backbone.save_pretrained(tmp_path)
    assert type(backbone) is MiTBackbone
    loaded = MiTBackbone.from_pretrained(tmp_path)  # `AutoBackbone.from_pretrained` takes no folders
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(backbone(images).feature_maps, loaded(images).feature_maps, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_stage_choice_of_the_backbone_is_saved(tmp_path):
    MiTConfig(out_features=["stage2", "stage3"]).save_pretrained(tmp_path)
    assert MiTConfig.from_pretrained(tmp_path).out_features == ["stage2", "stage3"]


# ---- where the package is not installed ----


@pytest.fixture(scope="module")
def loaded_without_the_package(saved, tmp_path_factory):
    folder, expected = saved
    target = tmp_path_factory.mktemp("remote")
    inputs, results = load_without_the_package(folder, target, *random_clips())
    return expected, results, target / "again", inputs


def test_remote_code_gives_the_same_logits_without_the_package(loaded_without_the_package):
    expected, results, _, _ = loaded_without_the_package
    assert_same_logits(results, expected)
    assert results["loss"].isfinite()


def test_remote_code_processor_works_without_the_package(loaded_without_the_package):
    expected, results, _, inputs = loaded_without_the_package
    processor = tiny_processor()
    batch = processor(inputs["video"].numpy(), inputs["maps"].numpy(), return_tensors="pt")
    assert torch.equal(results["pixel_values_videos"], batch["pixel_values_videos"])
    assert torch.equal(results["labels"], batch["labels"])
    maps = processor.post_process_semantic_segmentation(expected, [(75, 100), (75, 100)])
    assert torch.equal(results["label_maps"], torch.stack(maps))


def test_saving_again_from_remote_code_keeps_everything(saved, loaded_without_the_package):
    folder, expected = saved
    again = loaded_without_the_package[2]
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("config.json", "video_preprocessor_config.json"):
        first, second = (json.loads((path / name).read_text()) for path in (folder, again))
        for config in (first, second):
            config.get("backbone_config", {}).pop("dtype", None)  # only known once weights were loaded
        assert first == second
    assert_same_logits(logits_of(AutoModel.from_pretrained(again)), expected)


def test_saved_folder_contains_its_source_files(saved):
    folder, _ = saved
    assert {path.name for path in folder.glob("*.py")} == SOURCES
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_themask.THEMaskConfig",
        "AutoModel": "modeling_themask.THEMaskForVideoSemanticSegmentation",
    }
    assert "custom_pipelines" not in config  # it would make `pipeline` ask package users for trust_remote_code


# ---- importing the package ----


def test_import_is_silent():
    process = run_python("import transformers_themask", PYTHONWARNINGS="error:::transformers_themask")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_registering_again_changes_nothing():
    before = dict(CONFIG_MAPPING._extra_content), list(PIPELINE_REGISTRY.get_supported_tasks())
    transformers_themask.auto.register()
    assert (dict(CONFIG_MAPPING._extra_content), list(PIPELINE_REGISTRY.get_supported_tasks())) == before
    assert before[1].count("video-semantic-segmentation") == 1
    assert type(AutoConfig.for_model("mit")) is MiTConfig

# SPDX-License-Identifier: Apache-2.0
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import transformers_themask
from themask_command import main
from tiny import tiny_model
from trained_models import TRAINED_MODELS
from transformers_themask.publishing.licenses import LICENSE_IDS
from transformers_themask.publishing.model_card import build_model_card, write_model_card
from transformers_themask.publishing.results import (
    model_facts,
    read_results,
    saved_model_facts,
    training_facts,
    write_results,
)
from transformers_themask.training.arguments import VSSTrainingArguments

PIPELINE_TAGS = json.loads((Path(__file__).parents[1] / "fixtures" / "hub" / "pipeline_tags.json").read_text())
SCORES = {
    "mean_iou": 0.3759012345678,
    "weighted_iou": 0.6112345678901,
    "pixel_accuracy": 0.7412345678901,
    "mean_accuracy": 0.5,
    "vc8": 0.89,
    "vc16": None,
    "per_class_iou": {"road": 0.9, "sky | clouds": None, "car": 0.25},
    "num_frames": 27,
    "num_videos": 2,
    "num_unlabelled_frames": 3,
    "per_video": {
        "easy": {"mean_iou": 0.8, "per_class_iou": {"road": 0.8}},
        "hard": {"mean_iou": 0.2, "per_class_iou": {"road": 0.2}},
        "void": {"mean_iou": None, "per_class_iou": {}},
    },
}


@pytest.fixture
def result_file(tmp_path):
    model = tiny_model(num_frames=2, num_labels=3)
    args = VSSTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=3, seed=7
    )
    path = tmp_path / "model" / "results.json"
    write_results(
        path,
        SCORES,
        data_set="CamVid 1 Hz",
        split="val",
        clips={"num_frames": 2, "frame_stride": 3},
        model=model_facts(model, "tiny-themask", "nvidia/mit-b1"),
        recipe="recipes/camvid_small_stage2.yaml",
        training=training_facts(args, num_steps=400, clips_per_step=24),
    )
    return path


def test_card_metadata_is_valid_for_the_hub(result_file):
    data = build_model_card(read_results(result_file), license_id="cc-by-nc-4.0", tags=["camvid", "themask"]).data
    assert data.license == "cc-by-nc-4.0" and data.license in LICENSE_IDS
    assert data.pipeline_tag == "image-segmentation" and data.pipeline_tag in PIPELINE_TAGS
    assert data.library_name == "transformers"
    assert data.tags == ["video-semantic-segmentation", "themask", "camvid"]
    assert data.datasets == ["camvid-1-hz"]
    assert data.base_model == "nvidia/mit-b1"


def test_card_round_trips_with_scores_in_its_model_index(result_file):
    card = build_model_card(read_results(result_file))
    again = ModelCard(str(card))
    assert str(again) == str(card) and again.text == card.text
    assert again.data.to_dict() == card.data.to_dict()
    # A second parser, which knows nothing of cards.
    metadata = yaml.safe_load(str(card).split("---")[1])
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "tiny-themask"
    # VC16 is undefined here and therefore no result.
    expected = [("mean_iou", SCORES["mean_iou"]), ("weighted_iou", SCORES["weighted_iou"]), ("vc8", SCORES["vc8"])]
    assert [(result.metric_type, result.metric_value) for result in results] == expected
    assert {(result.task_type, result.dataset_name, result.dataset_split) for result in results} == {
        ("image-segmentation", "CamVid 1 Hz", "val")
    }


def test_card_text_matches_the_results(result_file):
    text = build_model_card(read_results(result_file), repo_id="somebody/tiny").text
    assert 'pipeline("video-semantic-segmentation", model="somebody/tiny")' in text
    assert "| 0.3759 | 0.6112 | 0.8900 | undefined |" in text
    assert "2 videos, 27 labelled frames" in text and "clips of 2 frames, 3 apart" in text
    assert "| car | 0.2500 |" in text and "| sky \\| clouds | not in the labels |" in text
    assert "lowest mIoU: hard (0.200), easy (0.800)." in text
    assert "Recipe: `camvid_small_stage2.yaml`" in text and "started from `nvidia/mit-b1`" in text
    assert "- The terms of the training data, and those of `nvidia/mit-b1`, may limit the use of the weights" in text
    assert "400 optimiser steps of 24 clips" in text and "seed 7" in text
    assert "## Limitations" in text and "{{" not in text and "{%" not in text


def test_local_initial_weights_are_not_a_base_model(tmp_path):
    (tmp_path / "stage1").mkdir()
    facts = model_facts(tiny_model(), "stage2", str(tmp_path / "stage1"))
    assert facts["base_model"] is None and facts["initial_weights"] == "stage1"
    assert model_facts(tiny_model(), "stage2", "/gone/runs/stage1")["base_model"] is None


def test_card_template_is_found_in_an_installed_package(tmp_path):
    root = Path(__file__).parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    shutil.copytree(Path(transformers_themask.__file__).parent, tmp_path / "transformers_themask")
    for source, target in build["targets"]["wheel"]["force-include"].items():
        shutil.copytree(root / source, tmp_path / target)
    script = "from transformers_themask.publishing.model_card import template_path; print(template_path())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    path = Path(run.stdout.strip())
    assert path.is_relative_to(tmp_path) and path.is_file(), run.stderr


@pytest.mark.parametrize(
    ("model_type", "sentence"),
    [
        ("themask", "(An et al., BMVC 2023)"),
        ("cffm", "(Sun et al., CVPR 2022)"),
        ("per_frame", "looks at each frame on its own"),
    ],
)
def test_card_introduces_the_model_family(result_file, model_type, sentence):
    results = read_results(result_file)
    results["model"] = {**results["model"], "model_type": model_type}
    card = build_model_card(results)
    assert sentence in card.text and model_type in card.data.tags


@pytest.mark.parametrize("name", TRAINED_MODELS)
def test_facts_of_saved_and_loaded_models_agree(tmp_path, name):
    model = TRAINED_MODELS[name].build()
    model.save_pretrained(tmp_path / "tiny", max_shard_size="50KB")
    facts = saved_model_facts(tmp_path / "tiny")
    assert facts == model_facts(model, "tiny")
    assert facts["num_frames"] == len(TRAINED_MODELS[name].frame_offsets)


def test_card_command_writes_the_card(result_file, tmp_path, capsys):
    folder = result_file.parent
    tiny_model(num_frames=2).save_pretrained(folder)
    assert main(["card", str(result_file), "--license", "mit"]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and card.data.model_name == "tiny-themask"
    # The scores of `themask evaluate` name no model; its folder does.
    write_results(tmp_path / "scores.json", SCORES, data_set="VSPW", split="val")
    other = tmp_path / "cards" / "README.md"
    assert main(["card", str(tmp_path / "scores.json"), "--model", str(folder), "-o", str(other)]) == 0
    assert ModelCard.load(other).data.eval_results[0].dataset_name == "VSPW"
    assert f"{other}" in capsys.readouterr().out


def test_invalid_input_is_an_error_of_one_line(result_file, tmp_path, capsys):
    def error(*arguments):
        assert main(["card", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "Got 'apache2'. Did you mean apache-2.0?" in error(result_file, "--license", "apache2")
    assert "nowhere.json must be a result file; evaluate the model first" in error(tmp_path / "nowhere.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "broken.json must be a result file in JSON" in error(broken)
    broken.write_text('{"data_set": "VSPW"}')
    assert "must hold `split`; use the results.json" in error(broken)
    write_results(broken, SCORES, data_set="VSPW", split="val")
    assert "must name their model; give the folder" in error(broken)
    assert "must be the folder of a saved model" in error(broken, "--model", tmp_path / "empty")
    facts = model_facts(tiny_model(), "tiny")
    write_results(broken, {**SCORES, "mean_iou": None}, data_set="VSPW", split="val", model=facts)
    assert "must hold a mean IoU; score a split" in error(broken)


def test_folder_without_results_gets_no_card(tmp_path):
    assert write_model_card(tmp_path) is None
    assert not (tmp_path / "README.md").exists()


def test_nan_in_results_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "results.json", {"vc8": math.nan}, data_set="VSPW", split="val")

# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from fake_hub import FakeHub
from tiny import tiny_model
from transformers_themask import THEMaskForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.data.synthetic import write_synthetic_dataset
from transformers_themask.publishing.model_card import write_model_card
from transformers_themask.publishing.results import RESULT_FILE, model_facts, write_results

ROOT = Path(__file__).parents[2]
REPOSITORY = "somebody/tiny-themask"
SCORES = {
    "mean_iou": 0.25,
    "weighted_iou": 0.5,
    "vc8": 0.75,
    "vc16": 0.625,
    "per_class_iou": {f"class {index}": 0.25 for index in range(6)},
    "num_frames": 18,
    "num_videos": 1,
    "per_video": {"a": {"mean_iou": 0.25}},
}

PUSH = """
import sys
from huggingface_hub import HfApi, ModelCard, constants, repocard

# Versions before 2.0 validate cards at the real Hub and not at the endpoint.
session = repocard.get_session()
post = session.post
session.post = lambda url, **options: post(url.replace("https://huggingface.co", constants.ENDPOINT), **options)
repocard.get_session = lambda: session
folder, repository = sys.argv[1:]
HfApi().create_repo(repository)
HfApi().upload_folder(repo_id=repository, folder_path=folder)
ModelCard.load(f"{folder}/README.md").validate()
"""

SEGMENT = """
import sys
import numpy as np
from transformers import AutoVideoProcessor, pipeline
import transformers_themask
from transformers_themask import AutoModelForVideoSemanticSegmentation

repository, frames_file, output = sys.argv[1:]
frames = np.load(frames_file)
segmenter = pipeline("video-semantic-segmentation", model=repository)
from_pipeline = segmenter(frames)["segmentation"]
model = AutoModelForVideoSemanticSegmentation.from_pretrained(repository).eval()
processor = AutoVideoProcessor.from_pretrained(repository)
outputs = model(**processor(frames, return_tensors="pt"))
sizes = [frames.shape[1:3]]
from_model = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy()
np.savez(output, from_pipeline=from_pipeline, from_model=from_model)
"""

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["transformers_themask"] = None  # as if it were not installed
import numpy as np
from transformers import AutoModel, AutoVideoProcessor

repository, frames_file, output = sys.argv[1:]
frames = np.load(frames_file)
model = AutoModel.from_pretrained(repository, trust_remote_code=True).eval()
processor = AutoVideoProcessor.from_pretrained(repository, trust_remote_code=True)
outputs = model(**processor(frames, return_tensors="pt"))
sizes = [frames.shape[1:3]]
np.savez(output, from_model=processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)[0].numpy())
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The stand-in with a pushed model, and the folder that was pushed."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(num_frames=2)
    model.save_pretrained(folder)
    THEMaskVideoProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    write_results(folder / RESULT_FILE, SCORES, data_set="VSPW", split="val", model=model_facts(model, "tiny-themask"))
    write_model_card(folder, license_id="cc-by-nc-4.0", repo_id=REPOSITORY)
    with FakeHub() as hub:
        run_client(hub, PUSH, folder, REPOSITORY, home=tmp_path_factory.mktemp("pusher"))
        yield hub, folder


def run_client(hub, script, *arguments, home):
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, env=hub.environment(home), cwd=home)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    np.save(tmp_path / "frames.npy", frames)
    return frames


def expected_label_maps(folder, frames):
    """What the pushed files give when they are loaded from the folder, in this process."""
    model = THEMaskForVideoSemanticSegmentation.from_pretrained(folder).eval()
    processor = THEMaskVideoProcessor.from_pretrained(folder)

    def segment(clip):
        with torch.no_grad():
            outputs = model(**processor(clip, return_tensors="pt"))
        return processor.post_process_semantic_segmentation(outputs, target_sizes=[clip.shape[1:3]])[0].numpy()

    return segment(frames), np.concatenate([segment(frames[:2]), segment(frames[2:])])


def test_model_processor_card_and_source_files_are_pushed(published):
    hub, folder = published
    files = hub.repositories[REPOSITORY]
    assert files.keys() >= {"config.json", "model.safetensors", "video_preprocessor_config.json", "README.md"}
    assert files.keys() >= {"modeling_themask.py", "configuration_themask.py", "video_processing_themask.py"}
    assert all(files[path.name] == path.read_bytes() for path in folder.iterdir())
    assert "POST /api/validate-yaml" in hub.requests


@pytest.mark.slow
def test_pushed_repository_segments_in_a_fresh_process(published, frames, tmp_path):
    hub, folder = published
    run_client(hub, SEGMENT, REPOSITORY, tmp_path / "frames.npy", tmp_path / "maps.npz", home=tmp_path / "home")
    maps, (from_model, from_pipeline) = np.load(tmp_path / "maps.npz"), expected_label_maps(folder, frames)
    assert np.array_equal(maps["from_model"], from_model)
    assert np.array_equal(maps["from_pipeline"], from_pipeline)


@pytest.mark.slow
def test_pushed_repository_loads_without_the_package(published, frames, tmp_path):
    hub, folder = published
    arguments = [REPOSITORY, tmp_path / "frames.npy", tmp_path / "maps.npz"]
    run_client(hub, WITHOUT_THE_PACKAGE, *arguments, home=tmp_path / "home")
    assert np.array_equal(np.load(tmp_path / "maps.npz")["from_model"], expected_label_maps(folder, frames)[0])


def test_pushed_card_parses(published):
    hub, _ = published
    card = ModelCard(hub.repositories[REPOSITORY]["README.md"].decode())
    assert hub.metadata(REPOSITORY)["library_name"] == card.data.library_name == "transformers"
    assert card.data.license == "cc-by-nc-4.0" and card.data.model_name == "tiny-themask"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: SCORES[name] for name in ("mean_iou", "weighted_iou", "vc8", "vc16")
    }
    assert f'model="{REPOSITORY}"' in card.text


def test_run_pushes_model_and_card_without_label_maps(tmp_path):
    """`run_vss.py --push_to_hub`, without a repository: the folder's name, of the user whose token it is."""
    write_synthetic_dataset(tmp_path / "data", num_train_videos=2, num_val_videos=1, num_frames=6, size=(64, 80))
    flags = ["--data_root", tmp_path / "data", "--output_dir", tmp_path / "my-run", "--max_steps", 1, "--use_cpu"]
    flags += ["--do_predict", "--push_to_hub", "--license", "cc-by-4.0", "--disable_tqdm", "true"]
    script = [ROOT / "scripts" / "run_vss.py", ROOT / "recipes" / "smoke.yaml", *flags]
    with FakeHub() as hub:
        run = subprocess.run(
            [sys.executable, *map(str, script)],
            capture_output=True,
            text=True,
            timeout=180,
            env=hub.environment(tmp_path / "home"),
        )
        assert run.returncode == 0, run.stderr
        (repository,) = hub.repositories
        files = hub.repositories[repository]
    assert repository == "somebody/my-run"
    assert files.keys() >= {"config.json", "model.safetensors", "README.md", "results.json", "modeling_themask.py"}
    assert not any(name.endswith(".png") and "predictions" in name for name in files)
    assert len(list((tmp_path / "my-run" / "predictions").rglob("*.png"))) == 6
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and card.data.model_name == "my-run"

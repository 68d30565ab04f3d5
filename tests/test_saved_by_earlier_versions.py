# SPDX-License-Identifier: Apache-2.0
"""What an earlier version saved loads, gives the same and trains on; see `fixtures/written_by_771a533/write.py`."""

import importlib.util
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoVideoProcessor

import transformers_themask
from hidden_package import HIDE_THE_PACKAGE, run_python
from transformers_themask import AutoModelForVideoSemanticSegmentation

ROOT = Path(__file__).parents[1]
SAVED = Path(__file__).parent / "fixtures" / "written_by_771a533"
BESIDE = json.loads((SAVED / "code.json").read_text())
RUNS = ("themask_t2", "mpvss")
CHECKPOINT = "checkpoint-3"
# Of a log entry, what does not depend on the clock and the machine.
LOGGED = ("loss", "grad_norm", "learning_rate", "step", "epoch")

LOAD_REMOTE_CODE = """
import importlib.util
import torch
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModel, AutoVideoProcessor

torch.set_num_threads(1)
script, source, target = sys.argv[1:]
spec = importlib.util.spec_from_file_location("write", script)
spec.loader.exec_module(write := importlib.util.module_from_spec(spec))
results = {}
for folder in Path(source).iterdir():
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64)
    processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert "transformers_modules" in type(model).__module__ and "transformers_modules" in type(processor).__module__
    outputs = write.outputs_of(model, processor, *write.video())
    results |= {f"{folder.name}.{name}": value for name, value in outputs.items()}
save_file(results, target)
"""


@pytest.fixture(scope="module")
def write():
    """The script that wrote the files, as a module."""
    spec = importlib.util.spec_from_file_location("write_771a533", SAVED / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    """Copies of the saved models with the source files that lay beside them."""
    root = tmp_path_factory.mktemp("saved")
    for name, files in BESIDE.items():
        is_run = name in RUNS
        shutil.copytree(SAVED / "runs" / name / CHECKPOINT if is_run else SAVED / "models" / name, root / name)
        with zipfile.ZipFile(SAVED / "code.zip") as archive:
            archive.extractall(root / name, files)
    return root


@pytest.fixture(scope="module")
def recorded():
    return load_file(SAVED / "recorded.safetensors")


def assert_recorded(outputs, recorded, name):
    expected = {key.removeprefix(f"{name}."): value for key, value in recorded.items() if key.startswith(f"{name}.")}
    assert outputs.keys() == expected.keys()
    for output, value in expected.items():
        tolerance = 1e-9 * value.double().abs().max().item()
        torch.testing.assert_close(outputs[output], value, rtol=0, atol=tolerance, msg=lambda m, o=output: f"{o}: {m}")


@pytest.mark.parametrize("name", BESIDE)
def test_saved_models_give_the_recorded_outputs(write, restored, recorded, name):
    folder = restored / name
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(folder, dtype=torch.float64)
    processor = AutoVideoProcessor.from_pretrained(folder)
    assert_recorded(write.outputs_of(model, processor, *write.video()), recorded, name)


@pytest.mark.parametrize("name", BESIDE)
def test_saved_models_load_with_the_classes_they_name(restored, name):
    folder = restored / name
    (class_name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model_class = getattr(transformers_themask, class_name)
    model, loading = model_class.from_pretrained(folder, output_loading_info=True)
    assert type(model) is type(AutoModelForVideoSemanticSegmentation.from_pretrained(folder))
    assert not any(loading[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_saved_segmenter_of_mpvss_is_that_of_a_themask():
    config = json.loads((SAVED / "runs" / "mpvss" / CHECKPOINT / "config.json").read_text())
    assert config["segmenter_config"]["model_type"] == "themask"


def test_saved_code_gives_the_recorded_outputs_without_the_package(write, restored, recorded, tmp_path):
    for name, files in BESIDE.items():
        if files:
            shutil.copytree(restored / name, tmp_path / "models" / name)
    arguments = [SAVED / "write.py", tmp_path / "models", tmp_path / "results.safetensors"]
    process = run_python(HIDE_THE_PACKAGE + LOAD_REMOTE_CODE, *arguments, HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert process.returncode == 0, process.stderr
    results = load_file(tmp_path / "results.safetensors")
    for name in (name for name, files in BESIDE.items() if files):
        own = {key.removeprefix(f"{name}."): value for key, value in results.items() if key.startswith(f"{name}.")}
        assert_recorded(own, recorded, name)


@pytest.mark.parametrize("name", RUNS)
def test_saved_trainings_continue_with_the_recorded_losses(write, restored, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(restored / name, run / CHECKPOINT)
    with write.in_float64():
        losses = write.train(ROOT / "scripts" / "run_vss.py", name, run)
    expected = json.loads((SAVED / "runs" / name / "losses.json").read_text())
    assert [entry["step"] for entry in losses] == [entry["step"] for entry in expected]
    for entry, expected_entry in zip(losses, expected, strict=True):
        wanted = {key: value for key, value in expected_entry.items() if key.startswith(LOGGED)}
        assert {key: entry[key] for key in wanted} == pytest.approx(wanted, rel=1e-6)

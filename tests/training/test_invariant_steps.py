# SPDX-License-Identifier: Apache-2.0
"""Loss, gradients and weights do not depend on how the clips of a step are spread over processes and batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trained_models import TRAINED_MODELS

WORKER = Path(__file__).with_name("invariance_worker.py")
# (processes, batch size x accumulation), eight clips each, with which those of `WHOLE` are compared.
WHOLE = (1, "8x1")
LAYOUTS = {"some": [(2, "2x2")], "all": [(2, "4x1"), (1, "4x2"), (2, "2x2")]}
MARKS = {"some": pytest.mark.slow, "all": pytest.mark.nightly}
MODELS = {"some": ["themask_t2", "cffm", "mpvss"], "all": list(TRAINED_MODELS)}


def parametrised(*others):
    """Parametrises with the layouts and models of both sets."""
    cases = [
        pytest.param(which, *layout, model, *other, marks=MARKS[which])
        for which in LAYOUTS
        for layout in LAYOUTS[which]
        for model in MODELS[which]
        for other in others or [()]
    ]
    names = ["runs", "world", "layout", "model", *(["dtype", "tolerance"] if others else [])]
    return pytest.mark.parametrize(names, cases, indirect=["runs"])


@pytest.fixture(scope="module")
def runs(request, data_root, tmp_path_factory):
    """The results of every layout and model of a set, from processes of their own."""
    folder = tmp_path_factory.mktemp("layouts")
    results = {}
    for world in (1, 2):
        layouts = [layout for processes, layout in (WHOLE, *LAYOUTS[request.param]) if processes == world]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        output = folder / f"{world}.pt"
        done = subprocess.run(
            [*command, str(WORKER), str(data_root), str(output), ",".join(MODELS[request.param]), *layouts],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results |= {(world, *key): value for key, value in torch.load(output, weights_only=False).items()}
    return results


@parametrised((torch.float64, 1e-10), (torch.float32, 1e-5))
def test_gradients_do_not_depend_on_processes_and_batches(runs, world, layout, model, dtype, tolerance):
    whole, spread = runs[1, "8x1", model, str(dtype)], runs[world, layout, model, str(dtype)]
    assert spread["world_size"] == world
    assert whole["gradients"].keys() == spread["gradients"].keys()
    for name in whole["logs"][0]:
        if name.removeprefix("frame_").startswith("loss") or name.endswith(("_loss", "query_share")):
            assert spread["logs"][0][name] == pytest.approx(whole["logs"][0][name], rel=max(tolerance, 1e-6)), name
    exact = runs[1, "8x1", model, "torch.float64"]["gradients"]
    for name, gradient in whole["gradients"].items():
        difference = (spread["gradients"][name] - gradient).abs().max()
        # Some gradients are zero and all that is seen of them is rounding: biases of keys and before norms.
        scale = 0.1 if exact[name].abs().max() < 1e-10 else gradient.abs().max()
        assert difference <= tolerance * scale, name


@parametrised()
def test_weights_after_five_steps_do_not_depend_on_processes_and_batches(runs, world, layout, model):
    whole, spread = runs[1, "8x1", model, "torch.float64"], runs[world, layout, model, "torch.float64"]
    assert [entry["loss"] for entry in spread["logs"]] == pytest.approx([entry["loss"] for entry in whole["logs"]])
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(spread["weights"][name], weight, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("runs", ["some"], indirect=True)
def test_the_clips_of_a_step_differ_in_their_number_of_targets(runs):
    shares = {entry["primary_query_share"] for entry in runs[1, "8x1", "themask_t2", "torch.float64"]["logs"]}
    assert len(shares) > 1

# SPDX-License-Identifier: Apache-2.0
"""The flow of MPVSS against tensors recorded from the official code: encoder, layers, flows, warped masks.

Tolerance as recorded: 1e-4 for flows and masks.
"""

import importlib.util

import pytest
import torch

from goldens import FIXTURES, json_file, manifest, tensors, under
from transformers_themask.families.mpvss import convert_flow_key
from transformers_themask.models.motion_mpvss import FlowEstimator, flow_frames, warp

FOLDER = FIXTURES.parent / "mpvss"
WARPS = ["zero_full", "zero_half", "one_half", "int_full", "rand_half", "far_half", "rand_quarter", "double"]


def assert_near(ours, official, tolerance=1e-4):
    torch.testing.assert_close(ours, official, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", WARPS)
def test_warp_equals_the_released_one(case):
    entries = tensors("warp", FOLDER)
    assert_near(warp(entries["x"], entries[f"{case}.flow"]), entries[f"{case}.out"], 1e-5)


def test_a_corrected_warp_leaves_masks_where_flow_is_zero_and_moves_them_where_it_is_constant():
    masks = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    still = torch.zeros(2, 2, 8, 12, dtype=torch.float64)
    assert_near(warp(masks, still, corrected=True), masks, 1e-12)
    assert (warp(masks, still) - masks).abs().max() > 0.1
    moved = still + torch.tensor([1.5, -1.0], dtype=torch.float64)[:, None, None]  # in places of twice the size
    ours = warp(masks, moved, corrected=True)
    assert_near(ours[..., 2:, :-3], masks[..., :-2, 3:], 1e-12)


def tiny_estimator(folder):
    config = manifest(folder)["config"]
    motion = config["motion"]
    estimator = FlowEstimator(
        motion["HIDDEN_DIM"],
        motion["NUM_FLOW_QUERIES"],
        encoder_channels=[8, 16, 24, 40, 40, 80],
        decoder_channels=list(reversed(config["tiny_motion_decoder_constants"]["deconv_out"])),
        num_layers=motion["DECODER_LAYERS"],
        num_heads=motion["NHEADS"],
        feedforward_dim=motion["DIM_FEEDFORWARD"],
    )
    weights = {key: value for key, value in tensors("tiny_weights", folder).items() if key.startswith("motion.")}
    estimator.load_state_dict({convert_flow_key(key): value for key, value in weights.items()}, strict=True)
    return estimator.eval(), motion["FLOW_IMG_NORM_MEAN"]


def padded(frames):
    """Frames from 0 to 1 padded to multiples of 32, and which of their pixels are of the picture."""
    height, width = frames.shape[-2:]
    padding = (0, -width % 32, 0, -height % 32)
    is_picture = torch.nn.functional.pad(torch.ones(len(frames), height, width, dtype=torch.bool), padding)
    return torch.nn.functional.pad(frames / 255, padding), is_picture


@pytest.mark.golden
@pytest.mark.parametrize(
    "name", ["tiny_flow_b2_60x90", "tiny_flow_b1_96x64", "tiny_flow_b1_150x270", "tiny_flow_zeroing"]
)
@torch.no_grad()
def test_every_stage_of_the_flow_equals_the_released_one(golden_dir, name):
    folder = golden_dir / "mpvss"
    estimator, mean = tiny_estimator(folder)
    entries = tensors(name, folder)
    official = under(entries, "out.")
    (current, is_picture), (key, _) = padded(entries["in.cur_image"]), padded(entries["in.key_image"])
    if "hw" in manifest(folder)["fixtures"][name]:  # the release takes the output's size for the picture's
        height, width = manifest(folder)["fixtures"][name]["hw"]
        is_picture[:, height:] = False
        is_picture[:, :, width:] = False
    frames = flow_frames(current, key, (1, 1, 1), [-x for x in mean], is_picture)
    assert_near(frames, official["flow_images"], 1e-6)
    maps = estimator.encoder(frames)
    for level, ours in enumerate(maps, start=2):
        assert_near(ours, official[f"enc_conv{level}"])

    layers = []
    for layer in estimator.query_motion.layers:
        layer.register_forward_hook(lambda module, args, output: layers.append((args[0], output)))
    embeddings = []
    estimator.query_head.flow_embedder.register_forward_hook(
        lambda module, args, out: embeddings.extend([args[0], out])
    )
    flows = estimator(frames, entries["in.query_init"].transpose(0, 1))
    for index, (tokens, output) in enumerate(layers):
        assert_near(tokens.transpose(0, 1), official[f"layer{index}_input"])
        assert_near(output.transpose(0, 1), official[f"layer{index}_tokens"])
    assert_near(embeddings[0].transpose(0, 1), official["queries_norm"])
    assert_near(embeddings[1].transpose(0, 1), official["flow_embed"])
    assert_near(flows.pixel[:, 0], official["pixel_flow"])
    assert_near(flows.query, official["query_flow"])
    assert_near(flows.fused, official["final_flow"])


@pytest.mark.golden
@torch.no_grad()
def test_flow_of_the_published_size_equals_the_released_one(golden_dir):
    """Weights and masks follow from a formula that comes with the recordings."""
    folder = golden_dir / "mpvss"
    spec = importlib.util.spec_from_file_location("fill_weights", folder / "fill_weights.py")
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    formula.FUSE_GAIN = json_file("full_flow_module", folder)["fuse_gain"]
    estimator = FlowEstimator(256, 100).eval()
    weights = {
        convert_flow_key(name): torch.from_numpy(formula.fill(name, shape))
        for name, shape in json_file("official_keys_R50", folder).items()
        if name.startswith("motion.")
    }
    estimator.load_state_dict(weights, strict=True)
    assert sum(parameter.numel() for parameter in estimator.parameters()) == 40_085_146

    entries = tensors("full_flow_module", folder)
    (current, is_picture), (key, _) = (padded(entries[f"in.{name}_image"][None]) for name in ("cur", "key"))
    mean = manifest(folder)["config"]["motion"]["FLOW_IMG_NORM_MEAN"]
    frames = flow_frames(current, key, (1, 1, 1), [-x for x in mean], is_picture)
    for level, ours in enumerate(estimator.encoder(frames), start=2):
        official = entries[f"out.enc_conv{level}"]
        assert_near(ours[:, :: ours.shape[1] // official.shape[1]], official)
    flows = estimator(frames, entries["in.query_init"].transpose(0, 1))
    assert_near(flows.pixel[:, 0], entries["out.pixel_flow"])
    assert_near(flows.query[0], entries["out.query_flow"])
    assert_near(flows.fused[0], entries["out.final_flow"])
    masks = torch.from_numpy(6 * (2 * formula.uniform("dev.masks", 100 * 16 * 24) - 1)).float().view(100, 1, 16, 24)
    assert_near(warp(masks, entries["out.final_flow"]), entries["out.warped_masks"][0][:, None])

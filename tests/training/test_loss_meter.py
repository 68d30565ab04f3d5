# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from accelerate import Accelerator

from transformers_themask.training.loss_meter import LossMeter


def batch(loss, share):
    return {"loss": torch.tensor(loss)}, {"share": torch.tensor(share)}


def test_shares_are_summed_per_step_and_statistics_averaged_per_batch():
    meter = LossMeter()
    for loss, share in ((1.0, 0.2), (2.0, 0.4), (3.0, 0.6), (4.0, 0.8)):  # two steps of two batches
        meter.add(*batch(loss, share))
    assert meter.pop_means(Accelerator(cpu=True), step=2) == pytest.approx({"loss": 5.0, "share": 0.5})
    meter.add(*batch(6.0, 0.1))
    assert meter.pop_means(Accelerator(cpu=True), step=3) == pytest.approx({"loss": 6.0, "share": 0.1})
    assert meter.pop_means(Accelerator(cpu=True), step=3) == {}


def test_meter_resumes_from_its_saved_state(tmp_path):
    meter, resumed = LossMeter(), LossMeter()
    meter.add(*batch(1.0, 0.2))
    torch.save(meter.state_dict(), tmp_path / "meter.pt")
    resumed.load_state_dicts([torch.load(tmp_path / "meter.pt", weights_only=True)], 0, 1)
    for each in (meter, resumed):
        each.add(*batch(3.0, 0.4))
    accelerator = Accelerator(cpu=True)
    assert (
        resumed.pop_means(accelerator, 2)
        == meter.pop_means(accelerator, 2)
        == pytest.approx({"loss": 2, "share": 0.3})
    )


def test_a_single_process_takes_over_what_two_had_added_up():
    pair = [LossMeter(), LossMeter()]
    for meter, loss, share in zip(pair, (1.0, 2.0), (0.2, 0.6), strict=True):
        meter.add(*batch(loss, share))
    alone, second = LossMeter(), LossMeter()
    alone.load_state_dicts([meter.state_dict() for meter in pair], 0, 1)
    assert alone.pop_means(Accelerator(cpu=True), step=1) == pytest.approx({"loss": 3.0, "share": 0.4})
    second.load_state_dicts([meter.state_dict() for meter in pair[:1]], 1, 2)  # of two, where one was before
    assert not second.sums

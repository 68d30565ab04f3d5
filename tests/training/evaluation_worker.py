# SPDX-License-Identifier: Apache-2.0
"""One process of the evaluations that `test_evaluation.py` compares: `... MODEL DATA_ROOT OUTPUT [MODE]`.

The main process writes the scores to OUTPUT, and every process how often it called the model. With a MODE the model is
sharded.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import PartialState
from torch.distributed.fsdp import fully_shard

from transformers_themask import AutoModelForVideoSemanticSegmentation, THEMaskVideoProcessor
from transformers_themask.data.sources import load_videos
from transformers_themask.training.evaluation import EvaluationVideos, evaluate_videos


def main(model_folder: str, data_root: str, output: str, mode: str | None = None) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    model = AutoModelForVideoSemanticSegmentation.from_pretrained(model_folder)
    processor = THEMaskVideoProcessor.from_pretrained(model_folder)
    calls: list[int] = []
    # Sessions call this method in every mode, and never `forward`.
    model_class, step = type(model), type(model).clip_step
    model_class.clip_step = lambda *arguments: (calls.append(1), step(*arguments))[1]
    if mode is not None:
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (state.num_processes,)))
    videos = load_videos(data_root, "val")
    results = []
    for num_videos in (3, 1):
        calls.clear()
        selected = EvaluationVideos(replace(videos, rows=list(videos.rows)[-num_videos:]), 2, mode=mode)
        scores = evaluate_videos(model, processor, selected, in_step=True)
        calls_of_all = [0] * state.num_processes
        torch.distributed.all_gather_object(calls_of_all, len(calls))
        results.append({"scores": scores, "calls": calls_of_all})
    if state.is_main_process:
        Path(output).write_text(json.dumps(results))
    state.wait_for_everyone()
    state.destroy_process_group()
    # Without the interpreter's shutdown: rarely, a thread of torch still asks for the interpreter then and aborts.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

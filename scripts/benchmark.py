#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare this package side by side with Transformers' own classes and with what released codes compute.

    python scripts/benchmark.py [ROW ...] [--repeats 7] [--size 480 864] [--device cuda] [--json OUT.json] [--quick]

A row compares two ways to do the same work with the same weights and inputs (row 5: other models with random weights),
and where they shall agree it says how far they differ. They take turns in one process, on the CPU with one thread.

speed_up    time of the baseline over ours: the median over the pairs, and its quartiles. Times are CPU times of the
            process, or between two events on a GPU
memory      the most that the call holds at once of what it allocates, ours over the baseline's
limit       what the speed-up would be if ours did its operations as fast as a product of large matrices
flops       floating-point operations (a multiplication with its addition is two), ours over the baseline's;
            interpolation, softmax and gathers do not count
operations  operations of PyTorch that are no views, about what a GPU would launch
syncs       how often host and device wait for each other; on the CPU, where a GPU's would

`must` leaves room for noise, `aim` is where we want to be. Nothing is judged with `--quick`, where all is tiny, and
on a GPU row 16 alone.
`--growth` adds what grows with frames, resolution, classes and the length of a video; `plot_performance.py` makes
docs/performance.md of the JSON.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import logging

import transformers_themask
from benchmarks.attention import attention_cases, pixel_decoder_cases
from benchmarks.data import loader_results
from benchmarks.decoder import decoder_cases
from benchmarks.gpu import gpu_results
from benchmarks.growth import growth_curves
from benchmarks.loss import frozen_stage_cases, launch_cases, loss_cases, second_round_cases
from benchmarks.measuring import Result, Setting, product_speed, results_of
from benchmarks.metrics import metric_cases
from benchmarks.post_processing import chain_cases, direct_cases
from benchmarks.streaming import streaming_cases
from benchmarks.whole_clip import clip_cases, peer_cases, precision_cases
from transformers_themask.inference.loading import load_model

QUICK_SIZE, QUICK_REPEATS = (96, 160), 1
# The row that a trained model is for.
MODEL_ROW = 13


class Row(NamedTuple):
    """A row of the table: its name, what is compared, and how."""

    name: str
    baseline: str
    ours: str
    results: Callable[[Setting], Iterator[Result]]
    only_on: str | None = None


def row(name: str, baseline: str, ours: str, cases: Any) -> Row:
    """A row that is made of cases."""
    return Row(name, baseline, ours, partial(results_of, cases))


ROWS = {
    1: row("deformable attention", "Transformers' function", "ours", attention_cases),
    2: row("pixel decoder", "Transformers' class", "ours", pixel_decoder_cases),
    3: row("decoder", "TAD, official style, 4 frames", "ours", decoder_cases),
    4: row("whole clip", "official style, 4 frames, MiT-B1", "ours", clip_cases),
    5: row("peers", "other models of Transformers, 4 frames", "ours, MiT-B1", peer_cases),
    6: row("post-processing", "enlarge all scores, argmax", "ours", direct_cases),
    7: row("post-processing chains", "official or Transformers' Mask2Former", "ours", chain_cases),
    8: row("loss", "Transformers' heads, matching, loss", "ours, both rounds", loss_cases),
    9: row("launches and syncs of the loss", "Transformers' heads, matching, loss", "ours, both rounds", launch_cases),
    10: row("second-round loss", "official, at full size", "ours", second_round_cases),
    11: row("frozen stage", "gradients of the pixel level", "pixel level frozen", frozen_stage_cases),
    12: row("sliding window", "window of 4 computed anew", "streaming step", streaming_cases),
    13: row("half precision", "float32", "bfloat16 autocast", precision_cases),
    14: Row("loader", "Pillow, in the order of the reference", "ours", loader_results),
    15: row("metrics", "loops of the official scripts", "ours", metric_cases),
    16: Row("GPU", "official style, eager, float32", "ours, compiled, bfloat16", gpu_results, only_on="cuda"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=row_number, metavar="ROW", help="1 to 16 (default: all)")
    parser.add_argument("--repeats", type=int, help="timed pairs of each case (default: 7)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width, multiples of 32 (default: 480 864)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--model", help="a trained THE-Mask, for row 13 (default: random weights)")
    parser.add_argument("--growth", action="store_true", help="measure what grows, too")
    parser.add_argument("--quick", action="store_true", help="tiny models and frames, to see that all works")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()  # Transformers expects its Mask2Former with a Swin
    torch.set_num_threads(1)
    try:
        setting = checked_setting(options)
        rows = options.rows or [number for number, each in ROWS.items() if each.only_on in (None, setting.device)]
        check_rows(rows, setting)
        check_writable(options.json)
    except ValueError as error:
        parser.error(str(error))
    report: dict[str, Any] = {"setting": vars(setting), "machine": machine(setting), "rows": {}}
    try:
        for number in rows:
            report["rows"][str(number)] = measured_row(number, setting)
            write(report, options.json)
        if options.growth:
            report["growth"] = growth_curves(setting)
            write(report, options.json)
    except KeyboardInterrupt:
        finished = ", ".join(report["rows"]) or "none"
        sys.exit(f"benchmark.py: interrupted. Finished rows: {finished}.")
    print("\n".join(f"{name}: {value}" for name, value in report["machine"].items()))


def checked_setting(options: argparse.Namespace) -> Setting:
    """The setting that the options ask for.

    Raises:
        ValueError: If it cannot be measured here.
    """
    size = tuple(options.size or (QUICK_SIZE if options.quick else Setting.size))
    repeats = (QUICK_REPEATS if options.quick else Setting.repeats) if options.repeats is None else options.repeats
    if min(size) < 64 or any(edge % 32 for edge in size):
        raise ValueError(f"`--size` must be two multiples of 32, at least 64. Got {size[0]} {size[1]}.")
    if repeats < 1:
        raise ValueError(f"`--repeats` must be at least 1. Got {repeats}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device` must be there. Got cuda, which PyTorch does not find; leave it out for the CPU.")
    if options.model is not None:
        load_model(options.model, argument="--model")
    return Setting(options.device, size, repeats, options.quick, options.model)


def check_rows(rows: Sequence[int], setting: Setting) -> None:
    """Raise a `ValueError` for a row that the device cannot measure, or a model that no row takes."""
    for number in rows:
        device = ROWS[number].only_on
        if device not in (None, setting.device):
            raise ValueError(f"`--device` must be {device} for row {number}. Got {setting.device}. Name other rows.")
    if setting.model is not None and MODEL_ROW not in rows:
        raise ValueError(f"`--model` must come with row {MODEL_ROW}. Got {setting.model}. Leave it out.")


def check_writable(path: Path | None) -> None:
    """Raise a `ValueError` for a file that cannot be written; what it holds stays until there are results."""
    if path is not None:
        try:
            path.open("a").close()
        except OSError as error:
            raise ValueError(
                f"`--json` must be a file that can be written. Got {path}: {error.strerror}. Name another."
            ) from error


def write(report: dict[str, Any], path: Path | None) -> None:
    """Write what is known so far, where a path is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


def row_number(text: str) -> int:
    """The number of a row, as the command line gives it."""
    if not text.isdecimal() or int(text) not in ROWS:
        raise argparse.ArgumentTypeError(f"`ROW` must be a number from 1 to {max(ROWS)}. Got {text!r}.")
    return int(text)


def measured_row(number: int, setting: Setting) -> dict[str, Any]:
    """Measure a row, and print each case as soon as it is known."""
    measured = ROWS[number]
    print(f"{number}. {measured.name}: {measured.baseline} / {measured.ours}", flush=True)
    cases = []
    for result in measured.results(setting):
        # What must hold of the first fifteen rows was set for a CPU.
        is_judged = not setting.quick and setting.device == (measured.only_on or "cpu")
        cases.append(case_report(result, is_judged))
        print("\n".join(case_lines(cases[-1])), flush=True)
    return {"name": measured.name, "baseline": measured.baseline, "ours": measured.ours, "cases": cases}


def case_report(result: Result, is_judged: bool) -> dict[str, Any]:
    """A result as JSON holds it, with what holds of the bounds."""
    bounds = []
    for bound in result.bounds:
        value = bound.value(result.figures)
        bounds.append({**vars(bound), "value": value, "holds": bound.holds(value) if is_judged else None})
    return {"name": result.name, "figures": result.figures, "bounds": bounds}


def case_lines(case: dict[str, Any]) -> list[str]:
    """A line for every figure, first those with a bound."""
    lines = [f"   {case['name']}"] if case["name"] else []
    bounded = {bound["figure"] for bound in case["bounds"]}
    for bound in case["bounds"]:
        name, _, part = bound["figure"].partition(".")
        figure = case["figures"][name]
        judgement = {True: "holds", False: "FAILS", None: ""}[bound["holds"]]
        wanted = limits_of(bound)
        details = "" if part else details_of(name, figure)
        lines.append(f"      {bound['figure']:<22}{number(bound['value']):>10}  {wanted:<26}{judgement:<7}{details}")
    for name, figure in case["figures"].items():
        if name not in bounded:
            lines.append(f"      {name:<22}{number(figure['value']):>10}  {'':<33}{details_of(name, figure)}".rstrip())
    return [line.rstrip() for line in lines]


def limits_of(bound: dict[str, Any]) -> str:
    """Must and aim in words."""
    sign = ">=" if bound["at_least"] else "<="
    must = "" if bound["must"] is None else f"must {sign} {bound['must']:.3g}"
    aim = "" if bound["aim"] is None else f" aim {bound['aim']:.3g}"
    return f"{must}{aim}".strip()


def details_of(name: str, figure: dict[str, Any]) -> str:
    """What a figure was made of."""
    if "quartiles" in figure:
        first, third = figure["quartiles"]
        times = figure["seconds"]
        return f"{first:.2f} to {third:.2f}; {1e3 * times['baseline']:.4g} ms, {1e3 * times['ours']:.4g} ms"
    if "baseline" not in figure:
        return ""
    unit, scale = {"memory": (" MB", 1e6), "flops": (" G", 1e9)}.get(name, ("", 1))
    return f"{figure['baseline'] / scale:.4g}{unit}, {figure['ours'] / scale:.4g}{unit}"


def number(value: float | None) -> str:
    """Three digits, or a dash for what there is not."""
    return "-" if value is None else f"{value:.3g}"


def machine(setting: Setting) -> dict[str, str]:
    """Where and of what this was measured."""
    source = Path(transformers_themask.__file__).parent

    def git(*command: str) -> str:
        try:
            ran = subprocess.run(["git", "-C", source, *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return ran.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", ".") else ""
    return {
        "machine": torch.cuda.get_device_name() if setting.device == "cuda" else processor_name(),
        "threads": str(torch.get_num_threads()),
        "product": f"{product_speed(setting, torch.float32) / 1e9:.3g} GFLOP/s in float32",
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": " ".join(["benchmark.py", *sys.argv[1:]]),
    }


def processor_name() -> str:
    """The CPU, and whether it has instructions for bfloat16."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = facts.get("model name", platform.processor()).strip()
    return f"{name} with avx512_bf16" if "avx512_bf16" in facts.get("flags", "") else name


if __name__ == "__main__":
    main()

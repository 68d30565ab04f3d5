# SPDX-License-Identifier: Apache-2.0
"""Compare this package with Transformers' classes and with the computations of released codes, row by row."""

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

import transformers_themask
from transformers_themask.inference.loading import load_model

from .attention import attention_cases, pixel_decoder_cases
from .decoder import decoder_cases
from .gpu import gpu_results
from .growth import growth_curves
from .loader import loader_results
from .loss import frozen_stage_cases, launch_cases, loss_cases, second_round_cases
from .measuring import Case, Result, Setting, measure, product_speed
from .metrics import metric_cases
from .post_processing import chain_cases, direct_cases
from .stream import streaming_cases
from .whole_clip import clip_cases, peer_cases, precision_cases

QUICK_SIZE, QUICK_REPEATS = (96, 160), 1
# The row that takes a trained model.
MODEL_ROW = 13


class Row(NamedTuple):
    """Name of a row, its implementations, its cases or their results, and the only device that can measure it."""

    name: str
    baseline: str
    ours: str
    cases: Callable[[Setting], Iterator[Case | Result]]
    only_on: str | None = None


ROWS = {
    1: Row("deformable attention", "Transformers' function", "ours", attention_cases),
    2: Row("pixel decoder", "Transformers' class", "ours", pixel_decoder_cases),
    3: Row("decoder", "TAD, official style, 4 frames", "ours", decoder_cases),
    4: Row("whole clip", "official style, 4 frames, MiT-B1", "ours", clip_cases),
    5: Row("peers", "other models of Transformers, 4 frames", "ours, MiT-B1", peer_cases),
    6: Row("post-processing", "enlarge all scores, argmax", "ours", direct_cases),
    7: Row("post-processing chains", "official or Transformers' Mask2Former", "ours", chain_cases),
    8: Row("loss", "Transformers' heads, matching, loss", "ours, both rounds", loss_cases),
    9: Row("launches and syncs of the loss", "Transformers' heads, matching, loss", "ours, both rounds", launch_cases),
    10: Row("second-round loss", "official, at full size", "ours", second_round_cases),
    11: Row("frozen stage", "gradients of the pixel level", "pixel level frozen", frozen_stage_cases),
    12: Row("sliding window", "window of 4 computed anew", "streaming step", streaming_cases),
    13: Row("half precision", "float32", "bfloat16 autocast", precision_cases),
    14: Row("loader", "Pillow, in the order of the reference", "ours", loader_results),
    15: Row("metrics", "loops of the official scripts", "ours", metric_cases),
    16: Row("GPU", "official style, eager, float32", "ours, compiled, bfloat16", gpu_results, only_on="cuda"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("rows", nargs="*", type=row_number, metavar="ROW", help="1 to 16 (default: all)")
    parser.add_argument("--repeats", type=int, help="timed pairs of each case (default: 7)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width, multiples of 32 (default: 480 864)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--model", help="a trained THE-Mask, for row 13 (default: random weights)")
    parser.add_argument("--growth", action="store_true", help="measure the growth with frames, size and classes, too")
    parser.add_argument("--quick", action="store_true", help="tiny models and frames, as a check of the code")


def row_number(text: str) -> int:
    """The number of a row from the command line."""
    if not text.isdecimal() or int(text) not in ROWS:
        raise argparse.ArgumentTypeError(f"`ROW` must be a number from 1 to {max(ROWS)}. Got {text!r}.")
    return int(text)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure rows; the report after each of them."""
    setting = checked_setting(options)
    rows = options.rows or [number for number, each in ROWS.items() if each.only_on in (None, setting.device)]
    check_rows(rows, setting)
    report: dict[str, Any] = {"setting": vars(setting), "machine": machine(setting), "rows": {}}
    try:
        for number in rows:
            report["rows"][str(number)] = measured_row(number, setting)
            yield report
        if options.growth:
            yield {**report, "growth": growth_curves(setting)}
    except KeyboardInterrupt:
        finished = ", ".join(report["rows"]) or "none"
        sys.exit(f"Interrupted. Finished rows: {finished}.")
    print("\n".join(f"{name}: {value}" for name, value in report["machine"].items()))


def checked_setting(options: argparse.Namespace) -> Setting:
    """The setting that the options describe; a `ValueError` if it cannot be measured here."""
    size = tuple(options.size or (QUICK_SIZE if options.quick else Setting.size))
    repeats = (QUICK_REPEATS if options.quick else Setting.repeats) if options.repeats is None else options.repeats
    if min(size) < 64 or any(edge % 32 for edge in size):
        raise ValueError(f"`--size` must be two multiples of 32, at least 64. Got {size[0]} {size[1]}.")
    if repeats < 1:
        raise ValueError(f"`--repeats` must be at least 1. Got {repeats}.")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("`--device` must be available. Got cuda, which PyTorch does not find; omit it for the CPU.")
    if options.model is not None:
        load_model(options.model, argument="--model")
    return Setting(options.device, size, repeats, options.quick, options.model)


def check_rows(rows: list[int], setting: Setting) -> None:
    """Raise a `ValueError` for a row that the device cannot measure, or a model without its row."""
    for number in rows:
        device = ROWS[number].only_on
        if device not in (None, setting.device):
            raise ValueError(f"`--device` must be {device} for row {number}. Got {setting.device}. Name other rows.")
    if setting.model is not None and MODEL_ROW not in rows:
        raise ValueError(f"`--model` must come with row {MODEL_ROW}. Got {setting.model}. Omit it.")


def measured_row(number: int, setting: Setting) -> dict[str, Any]:
    """Measure a row and print each case at once."""
    measured = ROWS[number]
    print(f"{number}. {measured.name}: {measured.baseline} / {measured.ours}", flush=True)
    # The bounds of the first fifteen rows hold for a CPU.
    is_judged = not setting.quick and setting.device == (measured.only_on or "cpu")
    cases = []
    for case in measured.cases(setting):
        result = case if isinstance(case, Result) else Result(case.name, case.bounds, measure(case, setting))
        cases.append(case_report(result, is_judged))
        print("\n".join(case_lines(cases[-1])), flush=True)
    return {"name": measured.name, "baseline": measured.baseline, "ours": measured.ours, "cases": cases}


def case_report(result: Result, is_judged: bool) -> dict[str, Any]:
    """A result for JSON, with the verdict on every bound."""
    bounds = []
    for bound in result.bounds:
        value = bound.value(result.figures)
        bounds.append({**vars(bound), "value": value, "holds": bound.holds(value) if is_judged else None})
    return {"name": result.name, "figures": result.figures, "bounds": bounds}


def case_lines(case: dict[str, Any]) -> list[str]:
    """A line for every figure, bounded ones first."""
    lines = [f"   {case['name']}"] if case["name"] else []
    unbounded = case["figures"].keys() - {bound["figure"] for bound in case["bounds"]}
    free = [{"figure": name, "value": case["figures"][name]["value"]} for name in case["figures"] if name in unbounded]
    for bound in [*case["bounds"], *free]:
        name, _, part = bound["figure"].partition(".")
        verdict = {True: "holds", False: "FAILS", None: ""}[bound.get("holds")]
        sign = ">=" if bound.get("at_least") else "<="
        limits = [f"{kind} {sign} {bound[kind]:.3g}" for kind in ("must", "aim") if bound.get(kind) is not None]
        value = "-" if bound["value"] is None else f"{bound['value']:.3g}"
        details = "" if part else details_of(name, case["figures"][name])
        lines.append(f"      {bound['figure']:<22}{value:>10}  {' '.join(limits):<26}{verdict:<7}{details}".rstrip())
    return lines


def details_of(name: str, figure: dict[str, Any]) -> str:
    """The numbers behind a figure."""
    if "quartiles" in figure:
        first, third = figure["quartiles"]
        times = figure["seconds"]
        return f"{first:.2f} to {third:.2f}; {1e3 * times['baseline']:.4g} ms, {1e3 * times['ours']:.4g} ms"
    if "baseline" not in figure:
        return ""
    unit, scale = {"memory": (" MB", 1e6), "flops": (" G", 1e9)}.get(name, ("", 1))
    return f"{figure['baseline'] / scale:.4g}{unit}, {figure['ours'] / scale:.4g}{unit}"


def machine(setting: Setting) -> dict[str, str]:
    """The machine and the versions."""
    source = Path(transformers_themask.__file__).parent

    def git(*command: str) -> str:
        ran = subprocess.run(["git", "-C", source, *command], capture_output=True, text=True)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    changed = " with changes" if git("status", "--porcelain", "--", ".") else ""
    return {
        "machine": torch.cuda.get_device_name() if setting.device == "cuda" else processor_name(),
        "threads": str(torch.get_num_threads()),
        "product": f"{product_speed(setting, torch.float32) / 1e9:.3g} GFLOP/s in float32",
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def processor_name() -> str:
    """The CPU, and whether it has instructions for bfloat16."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = facts.get("model name", platform.processor()).strip()
    return f"{name} with avx512_bf16" if "avx512_bf16" in facts.get("flags", "") else name

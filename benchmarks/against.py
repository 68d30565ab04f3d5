# SPDX-License-Identifier: Apache-2.0
"""Compare rows of this checkout with those of another one, such as of an earlier commit."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .measuring import summarise_pairs, table

HERE = Path(__file__).parents[1]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="folder of the other checkout")
    parser.add_argument("rows", nargs="+", metavar="ROW", help="rows of `rows`")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout for each row (default: 5)")
    parser.add_argument("--repeats", type=int, help="timed pairs in a process (default: that of `rows`)")
    parser.add_argument("--quick", action="store_true", help="tiny models and frames, as a check of the code")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure rows alternately; the ratios so far by case."""
    flags = ["--quick"] if options.quick else []
    flags += [] if options.repeats is None else ["--repeats", str(options.repeats)]
    result: dict[str, Any] = {}
    for row in options.rows:
        pairs = [[seconds_of(each, row, flags) for each in (options.checkout, HERE)] for _ in range(options.rounds)]
        for case in pairs[0][0]:
            ratios = {
                way: summarise_pairs(*([times[case][way] for times in side] for side in zip(*pairs, strict=True)))
                for way in ("ours", "baseline")
            }
            first, third = ratios["ours"]["quartiles"]
            result[case] = {"ratio": ratios["ours"]["value"], "from": first, "to": third}
            result[case] |= {"baseline": ratios["baseline"]["value"]}
        print(table(result), flush=True)
        yield result


def seconds_of(checkout: Path, row: str, flags: list[str]) -> dict[str, dict[str, float]]:
    """Median seconds of both implementations by case, measured by a checkout."""
    old_script = checkout / "scripts" / "benchmark.py"  # before there was this folder
    program = [str(old_script.absolute())] if old_script.exists() else ["-m", "benchmarks", "rows"]
    path = os.pathsep.join([str(checkout.absolute() / "src"), os.environ.get("PYTHONPATH", "")])
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, *program, row, *flags, "--json", str(report)]
        ran = subprocess.run(
            command, cwd=checkout, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if ran.returncode:
            raise ValueError(f"`{checkout}` must be able to measure row {row}. Got: {ran.stderr.strip()[-500:]}")
        cases = json.loads(report.read_text())["rows"][row]["cases"]
    return {
        f"{row} {case['name']}".strip(): case["figures"]["speed_up"]["seconds"]
        for case in cases
        if "speed_up" in case["figures"]
    }

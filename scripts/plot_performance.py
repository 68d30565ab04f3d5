#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Write docs/performance.md and its plots from what `benchmark.py` measured.

    python scripts/plot_performance.py REPORT.json [REPORT.json ...] [--docs docs]

Several reports are joined, such as one of the CPU and one of a GPU: of a device, a row is taken from the last report
that has it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Text stays text, and equal curves give equal files.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "performance"}
COLORS = ("#b3b3b3", "#5b8db8", "#d95f02")
TITLE = "Performance, side by side"
EXPLANATION = """\
Each row compares two ways to do the same work with the same weights and inputs, in one process, in turns; row 5 sets
other models beside ours, with random weights. A speed-up is the median over the pairs of the baseline's time over
ours, with quartiles; on the CPU times are CPU times with one thread. Peak memory, floating-point operations (FLOPs),
operations of PyTorch and waits of host and device are counted: ours over the baseline's. *must* leaves room for noise,
*aim* is where we want to be, *limit* is what the speed-up would be if ours did its operations as fast as the machine
multiplies large matrices.

Written by `scripts/plot_performance.py docs/performance/*.json` from reports of `scripts/benchmark.py --growth --json
REPORT.json`; `--model` names the trained model of row 13."""
# What stands in the way of more.
NOTES = {
    1: "Indices, weights, values and sums are 44 MB to read and write; Transformers holds 320 MB at its peak.",
    2: "What is left are linear layers and one convolution, near the speed of a matrix product.",
    3: "A third of the rest are keys and values of the cross-attention, which every layer makes anew of all cells.",
    4: "Two thirds of the operations are the pixel decoder's, most of them linear layers, which cannot be left out.",
    5: "VidEoMT-S is faster than we are: it has no pixel decoder, and all its operations are large products.",
    6: """\
The product of queries and masks takes a seventh of our time, and is all that the limit counts. The rest is finding the
pixels whose four logits disagree, and blending these: it grows with the length of borders.""",
    7: """\
As in row 6, with two products for the two levels of the official model. Both chains enlarge twice, Transformers' also
squashes the masks first, and we enlarge once, so that labels near borders differ; `via_input_size=True` of our
processor does as the official chain.""",
    8: """\
A matching cost needs every query at every point, which alone is 0.27 of the baseline's FLOPs; the heads are 0.06 and
the masks that the model puts out 0.03; each class of an image adds 0.02 for the masks of its two queries in ten
predictions, forward and backward, and for its costs. So 0.45 holds for up to four classes per image and cannot hold
for eight.""",
    9: """\
These are the operations for a GPU; a CPU works on what its cache holds, with more of them. The bound is one on the
forward pass. Heads are 60 of its 229, one by one as the decoder needs them; eight images take 288, as 2²⁷ numbers are
worked on at once at most. The backward pass is autograd's: an operation or two for each.""",
    10: """\
Ten layers of sixteen masks. Nearest-neighbour enlarging makes sixteen pixels of one logit: there is a sixteenth of the
elements, and what is left is reading and writing them. Half of the time goes to memory that the allocator takes from
the system anew, so that what the process did before matters: by itself (`benchmark.py 10`) the row reaches 13.""",
    11: """\
The bound is one on the model. Its loss keeps as much in both ways, unless `--gradient_checkpointing` computes it
anew.""",
    13: """\
Only products of matrices gain, and small ones little: the 2.5 million parameters of `make demo` reach 1.2. The trained
model is that of `recipes/demo_medium.yaml` (5.7 million parameters, 0.960 mIoU on the demo's videos); the model with
random weights has the published size.""",
    14: "A clip of four frames. The photometric step is most of it; on the device it costs the loader nothing.",
}
# What is about GPUs alone.
GPU_ROWS = {16}
NOT_MEASURED = """\
Nothing here was ever run on a GPU, since none was at hand; `scripts/benchmark.py --device cuda` has row 16 ready. What
is meant for one: frames of a clip go through the backbone together; the eval forward pass never waits and the loss
waits twice; `torch.compile(model, mode="reduce-overhead")` records CUDA graphs for frames of a fixed size; `--bf16` or
`dtype="bfloat16"` for a pipeline; with the package `kernels`, `use_kernels=True` of `from_pretrained` takes deformable
attention from the Hub; a thread uploads, resizes and normalises frames ahead of the model; `--photometric_on device`
augments there."""
NAMES = {
    "speed_up": "speed-up",
    "memory": "peak memory",
    "flops": "FLOPs",
    "operations": "operations",
    "syncs": "waits",
    "syncs.ours": "waits, ours",
    "difference": "largest difference",
    "saved_bytes": "bytes saved for the backward pass",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="JSON of benchmark.py")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where to write (default: docs)")
    options = parser.parse_args(arguments)
    images = options.docs / "images"
    try:
        report = joined([read_report(path) for path in options.reports])
        images.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"`--docs` must be a folder. Got {options.docs}: {error.strerror}.")
    for name, curve in report["growth"].items():
        draw(images / f"performance_{name}.svg", curve)
    (options.docs / "performance.md").write_text(page(report))


def read_report(path: Path) -> dict[str, Any]:
    """What `benchmark.py` wrote.

    Raises:
        ValueError: If the file cannot be read, or is something else or of a quick run.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"`REPORT` must be a file that can be read. Got {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"`REPORT` must be JSON of benchmark.py. Got {path}: {error}.") from error
    try:
        is_quick = report["setting"]["quick"]
        page(joined([report]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`REPORT` must be JSON of benchmark.py. Got {path}, which has other content.") from error
    if is_quick:
        raise ValueError(f"`REPORT` must be of a full run. Got {path} of a quick one, which says nothing.")
    return report


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report with the rows of all, by device and number, each of which says where it was measured."""
    rows: dict[tuple[int, str], Any] = {}
    growth: dict[str, Any] = {}
    for report in reports:
        device = report["setting"]["device"]
        rows |= {(int(key), device): {**row, "machine": report["machine"]} for key, row in report["rows"].items()}
        growth |= report.get("growth", {})
    return {"rows": dict(sorted(rows.items())), "growth": growth}


def page(report: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [f"# {TITLE}", EXPLANATION]
    if report["growth"]:
        parts.append("## What grows")
        parts += [
            f"![{curve['y_label']} over {curve['x_label']}](images/performance_{name}.svg)"
            for name, curve in report["growth"].items()
        ]
    for (number, device), row in report["rows"].items():
        title = f"## {number}. {row['name'][0].upper()}{row['name'][1:]}"
        is_exception = device == "cuda" and number not in GPU_ROWS
        parts += [
            f"{title}, on a GPU" if is_exception else title,
            f"{row['baseline']} against {row['ours']}.",
            table(row),
        ]
        facts = row["machine"]
        place = (
            f"{facts['machine']}, {facts['threads']} thread (a product of matrices: {facts['product']}), "
            f"commit {facts['commit']}, PyTorch {facts['torch']}, Transformers {facts['transformers']}."
        )
        parts += [place] if is_exception or number not in NOTES else [NOTES[number], place]
    if not GPU_ROWS & {number for number, _ in report["rows"]}:
        parts += ["## 16. GPU", NOT_MEASURED]
    return "\n\n".join(parts) + "\n"


def table(row: dict[str, Any]) -> str:
    """What was bounded in a row, with its quartiles, and whether it holds."""
    lines = ["| case | figure | measured | quartiles | must | aim | limit | holds |", "|---" * 8 + "|"]
    for case in row["cases"]:
        for bound in case["bounds"]:
            sign = "≥" if bound["at_least"] else "≤"
            limits = ["" if bound[name] is None else f"{sign} {bound[name]:.3g}" for name in ("must", "aim")]
            quartiles = case["figures"].get(bound["figure"], {}).get("quartiles")
            spread = "" if quartiles is None else f"{quartiles[0]:.2f} to {quartiles[1]:.2f}"
            is_timed = bound["figure"] == "speed_up" and "limit" in case["figures"]
            limit = f"{case['figures']['limit']['value']:.3g}" if is_timed else ""
            cells = [
                case["name"],
                NAMES.get(bound["figure"], bound["figure"].replace("_", " ")),
                "" if bound["value"] is None else f"{bound['value']:.3g}",
                spread,
                *limits,
                limit,
                {True: "yes", False: "**no**", None: ""}[bound["holds"]],
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, curve: dict[str, Any]) -> None:
    """Draw one curve with a line for each way; in the SVG each is a group with its name as identifier."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.add_subplot()
        colors = COLORS[-len(curve["lines"]) :]
        for (name, values), color in zip(curve["lines"].items(), colors, strict=True):
            axes.plot(curve["x"], values, color=color, marker="o", markersize=4, label=name, gid=name)
        axes.set(xlabel=curve["x_label"], ylabel=curve["y_label"], ylim=(0, None), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Write docs/performance.md, from docs/performance_notes.md, and its plots from reports of `rows`."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Text stays text, and equal curves give equal files.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "performance",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
COLORS = ("#b3b3b3", "#5b8db8", "#d95f02")
NOTES = Path(__file__).parents[1] / "docs" / "performance_notes.md"
GPU_ROWS = {16}
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "reports",
        nargs="+",
        type=Path,
        metavar="REPORT",
        help="JSON of `rows`; of a device, the last one with a row gives it",
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder to write to (default: docs)")


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Write the page and the plots."""
    images = options.docs / "images"
    report = joined([read_report(path) for path in options.reports])
    options.docs.mkdir(parents=True, exist_ok=True)
    for name, curve in report["growth"].items():
        draw(images / f"performance_{name}.svg", curve)
    (options.docs / "performance.md").write_text(page(report))
    yield report


def read_report(path: Path) -> dict[str, Any]:
    """A report of `rows`; a `ValueError` if the file is something else or of a quick run."""
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"`REPORT` must be a file that can be read. Got {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"`REPORT` must be JSON of `rows`. Got {path}: {error}.") from error
    try:
        is_quick = report["setting"]["quick"]
        page(joined([report]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"`REPORT` must be JSON of `rows`. Got {path}, which has other content.") from error
    if is_quick:
        raise ValueError(f"`REPORT` must be of a full run. Got {path} of a quick one, which proves nothing.")
    return report


def joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report with the rows of all, by number and device, each with its machine."""
    rows: dict[tuple[int, str], Any] = {}
    growth: dict[str, Any] = {}
    for report in reports:
        device = report["setting"]["device"]
        rows |= {(int(key), device): {**row, "machine": report["machine"]} for key, row in report["rows"].items()}
        growth |= report.get("growth", {})
    return {"rows": dict(sorted(rows.items())), "growth": growth}


def sections(path: Path) -> tuple[str, dict[int, str]]:
    """Introduction of the notes, and the text of every row."""
    introduction, *parts = path.read_text().strip().split("\n\n## ")
    titled = [part.partition("\n\n") for part in parts]
    return introduction, {int(title.partition(".")[0]): text for title, _, text in titled}


def page(report: dict[str, Any]) -> str:
    """The page as Markdown."""
    introduction, notes = sections(NOTES)
    parts = [introduction]
    if report["growth"]:
        parts.append("## What grows")
        parts += [
            f"![{curve['y_label']} over {curve['x_label']}](images/performance_{name}.svg)"
            for name, curve in report["growth"].items()
        ]
    for (number, device), row in report["rows"].items():
        title = f"## {number}. {row['name'][0].upper()}{row['name'][1:]}"
        is_exception = device == "cuda" and number not in GPU_ROWS
        has_note = number in notes.keys() - GPU_ROWS and not is_exception
        facts = row["machine"]
        parts += [
            f"{title}, on a GPU" if is_exception else title,
            f"{row['baseline']} against {row['ours']}.",
            table(row),
            *([notes[number]] if has_note else []),
            f"{facts['machine']}, {facts['threads']} thread (a product of matrices: {facts['product']}), "
            f"commit {facts['commit']}, PyTorch {facts['torch']}, Transformers {facts['transformers']}.",
        ]
    if not GPU_ROWS & {number for number, _ in report["rows"]}:
        parts += ["## 16. GPU", notes[16]]
    return "\n\n".join(parts) + "\n"


def table(row: dict[str, Any]) -> str:
    """The bounded figures of a row."""
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
    """Draw a curve; in the SVG each line is a group with its name as identifier."""
    with line_plot(path, (7, 3.2), curve["x_label"], curve["y_label"]) as axes:
        colors = COLORS[-len(curve["lines"]) :]
        for (name, values), color in zip(curve["lines"].items(), colors, strict=True):
            axes.plot(curve["x"], values, color=color, marker="o", markersize=4, label=name, gid=name)
        axes.legend()


@contextmanager
def line_plot(path: Path, size: tuple[float, float], x_label: str, y_label: str) -> Iterator[Axes]:
    """Axes from zero to draw on, saved after the `with` block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None), xlim=(0, None))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)

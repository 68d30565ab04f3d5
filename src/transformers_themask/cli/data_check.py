# SPDX-License-Identifier: Apache-2.0
"""`themask data check`: check every file of a data set."""

import argparse
import json

from transformers_themask.data.inspection import Inspection, inspect_data_set
from transformers_themask.data.skip_list import SKIP_FILE, add_to_skip_list
from transformers_themask.sinks.output_folder import check_output_folder

UNUSABLE_DATA = 1
MAX_SHOWN_FINDINGS = 50


def run(options: argparse.Namespace) -> int:
    """Check every file of a data set; returns 1 if a run with it would fail, else 0."""
    if options.json is not None:
        check_output_folder("--json", options.json.parent)
    inspection = inspect_data_set(options.path, options.split, progress=True)
    _print_table(inspection)
    findings = [(report.split, finding) for report in inspection.splits for finding in report.findings]
    findings.sort(key=lambda named: not named[1].stops_run)
    for split, finding in findings[:MAX_SHOWN_FINDINGS]:
        print(f"{split}: {'error' if finding.stops_run else 'note'}: {finding.message}")
    if len(findings) > MAX_SHOWN_FINDINGS:
        print(f"and {len(findings) - MAX_SHOWN_FINDINGS} more; `--json FILE` writes all of them")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(inspection.to_dict(), indent=2) + "\n", encoding="utf-8")
    stops_run = inspection.stops_run
    if options.skip_damaged and inspection.damaged:
        add_to_skip_list(options.path, inspection.damaged)
        print(f"{options.path / SKIP_FILE}: {len(inspection.damaged)} added")
        stops_run = any(finding.stops_run and finding.damaged is None for _, finding in findings)
    return UNUSABLE_DATA if stops_run else 0


def _print_table(inspection: Inspection) -> None:
    num_classes = len(inspection.class_names)
    width = max(len("split"), *(len(report.split) for report in inspection.splits))
    print(f"{inspection.layout}, {num_classes} classes")
    print(f"{'split':<{width}}{'videos':>9}{'frames':>9}{'labelled':>10}{'classes':>10}  height x width (videos)")
    for report in inspection.splits:
        num_present = int((report.class_pixels[1 : num_classes + 1] > 0).sum())
        sizes = ", ".join(f"{size[0]}x{size[1]} ({count})" for size, count in report.videos_of_size.most_common())
        print(
            f"{report.split:<{width}}{report.num_videos:>9}{report.num_frames:>9}{report.num_labelled_frames:>10}"
            f"{num_present:>10}  {sizes}"
        )

# SPDX-License-Identifier: Apache-2.0
"""What a call holds in memory at its worst moment, as `scripts/measure_memory.py` measures it."""

import runpy
from pathlib import Path

MEASURE_MEMORY = Path(__file__).parents[1] / "scripts" / "measure_memory.py"

peak_bytes = runpy.run_path(str(MEASURE_MEMORY))["peak_memory"]

#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and predict with a video semantic segmentation model.

    accelerate launch scripts/run_vss.py recipes/camvid_small_stage1.yaml --data_root DATA [--flag value ...]

A recipe is a YAML file of the arguments in `transformers_themask.training.arguments`; flags override it. The run does
what `do_train`, `do_eval` and `do_predict` say and leaves the model, its processor, checkpoints, `results.json`, the
learning curve and, on request, label maps in `output_dir`.
"""

import sys
from functools import partial

from tqdm.auto import tqdm
from transformers.utils import logging

from transformers_themask.terminal_text import error_line
from transformers_themask.training.run import run_recipe

# Below Transformers' own logger, so that TRANSFORMERS_VERBOSITY reaches it.
logger = logging.get_logger("transformers.run_vss")


def main() -> int:
    """Run the command line; 2 for a problem with the input. TRANSFORMERS_VERBOSITY=debug shows the traceback."""
    try:
        return run_recipe(sys.argv[1:], partial(print, flush=True))
    except (ValueError, OSError, ImportError) as error:
        logger.debug("The run ends with an error.", exc_info=True)
        tqdm.write(f"run_vss.py: {error_line(error)}", file=sys.stderr)  # clear of progress bars
        return 2


if __name__ == "__main__":
    sys.exit(main())

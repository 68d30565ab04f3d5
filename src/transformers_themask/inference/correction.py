# SPDX-License-Identifier: Apache-2.0
"""The earlier place of `transformers_themask.mvc.correction`."""

from transformers_themask.mvc.correction import VideoCorrector, correct_results

__all__ = ["VideoCorrector", "correct_results"]

# SPDX-License-Identifier: Apache-2.0
"""The rows of `scripts/benchmark.py`, one module per subject, and the tools they are measured with."""

# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of this package; `python -m benchmarks --help` lists the commands."""

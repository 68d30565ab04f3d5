# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of this package; README.md explains the commands."""

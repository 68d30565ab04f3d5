# SPDX-License-Identifier: Apache-2.0
"""Metrics of video semantic segmentation; two of the folders are `evaluate` modules."""

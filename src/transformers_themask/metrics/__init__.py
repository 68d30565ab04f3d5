# SPDX-License-Identifier: Apache-2.0
"""Metrics of video semantic segmentation; `video_mean_iou.py` and `video_consistency.py` are `evaluate` modules."""

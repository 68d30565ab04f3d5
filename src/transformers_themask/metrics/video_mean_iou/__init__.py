# SPDX-License-Identifier: Apache-2.0
"""Mean IoU of a video data set as an `evaluate` module."""

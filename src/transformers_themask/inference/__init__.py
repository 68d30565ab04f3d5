# SPDX-License-Identifier: Apache-2.0
"""Using a trained model: video files, segmentation of whole videos, drawing, and the pipeline."""

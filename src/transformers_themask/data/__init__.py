# SPDX-License-Identifier: Apache-2.0
"""Labelled videos on disk: readers, checks, training clips with augmentation, and synthetic videos."""
